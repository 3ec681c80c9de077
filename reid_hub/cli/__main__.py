from reid_hub.cli import main

main()
