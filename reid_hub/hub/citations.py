"""Who to cite, in BibTeX, by the name under which a configuration or a results.json mentions it.

A new backbone or recipe adds its entry here; the card picks those that its model used. A `Method` class and a
`DatasetSpec` bring their own.
"""

import re
from collections.abc import Iterable

from reid_hub.methods import METHODS

CITATIONS: dict[str, str] = {
    # backbones, by the model_type of their configuration
    "resnet": """@inproceedings{he2016deep,
  title     = {Deep Residual Learning for Image Recognition},
  author    = {He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian},
  booktitle = {CVPR}, year = {2016}
}""",
    "reid_osnet": """@inproceedings{zhou2019osnet,
  title     = {Omni-Scale Feature Learning for Person Re-Identification},
  author    = {Zhou, Kaiyang and Yang, Yongxin and Cavallaro, Andrea and Xiang, Tao},
  booktitle = {ICCV}, year = {2019}
}""",
    "reid_msinet": """@inproceedings{gu2023msinet,
  title     = {{MSINet}: Twins Contrastive Search of Multi-Scale Interaction for Object {ReID}},
  author    = {Gu, Jianyang and Wang, Kai and Luo, Hao and Chen, Chen and Jiang, Wei and Fang, Yuqiang and
               Zhang, Shanghang and You, Yang and Zhao, Jian},
  booktitle = {CVPR}, year = {2023}
}""",
    "reid_part_vit": """@inproceedings{zhu2022pass,
  title     = {{PASS}: Part-Aware Self-Supervised Pre-Training for Person Re-Identification},
  author    = {Zhu, Kuan and Guo, Haiyun and Yan, Tianyi and Zhu, Yousong and Wang, Jinqiao and Tang, Ming},
  booktitle = {ECCV}, year = {2022}
}""",
    "reid_squeezenet": """@article{iandola2016squeezenet,
  title   = {{SqueezeNet}: {AlexNet}-level accuracy with 50x fewer parameters and <0.5{MB} model size},
  author  = {Iandola, Forrest N. and Han, Song and Moskewicz, Matthew W. and Ashraf, Khalid and Dally, William J. and
             Keutzer, Kurt},
  journal = {arXiv:1602.07360}, year = {2016}
}""",
    "reid_densenet": """@inproceedings{huang2017densely,
  title     = {Densely Connected Convolutional Networks},
  author    = {Huang, Gao and Liu, Zhuang and van der Maaten, Laurens and Weinberger, Kilian Q.},
  booktitle = {CVPR}, year = {2017}
}""",
    "reid_mgn": """@inproceedings{wang2018mgn,
  title     = {Learning Discriminative Features with Multiple Granularities for Person Re-Identification},
  author    = {Wang, Guanshuo and Yuan, Yufeng and Chen, Xiong and Li, Jiwei and Zhou, Xi},
  booktitle = {ACM Multimedia}, year = {2018}
}""",
    "vit": """@inproceedings{dosovitskiy2021image,
  title     = {An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale},
  author    = {Dosovitskiy, Alexey and Beyer, Lucas and Kolesnikov, Alexander and Weissenborn, Dirk and Zhai, Xiaohua
               and Unterthiner, Thomas and Dehghani, Mostafa and Minderer, Matthias and Heigold, Georg and Gelly,
               Sylvain and Uszkoreit, Jakob and Houlsby, Neil},
  booktitle = {ICLR}, year = {2021}
}""",
    "timm_wrapper": """@misc{wightman2019timm,
  title  = {PyTorch Image Models},
  author = {Wightman, Ross},
  year   = {2019}, howpublished = {https://github.com/huggingface/pytorch-image-models}
}""",
    # recipes and methods, by their name in results.json
    "transreid": """@inproceedings{he2021transreid,
  title     = {{TransReID}: Transformer-Based Object Re-Identification},
  author    = {He, Shuting and Luo, Hao and Wang, Pichao and Wang, Fan and Li, Hao and Jiang, Wei},
  booktitle = {ICCV}, year = {2021}
}""",
    # evaluation
    "rerank": """@inproceedings{zhong2017rerank,
  title     = {Re-ranking Person Re-identification with k-reciprocal Encoding},
  author    = {Zhong, Zhun and Zheng, Liang and Cao, Donglin and Li, Shaozi},
  booktitle = {CVPR}, year = {2017}
}""",
}


def cite(names: Iterable[str | None], entries: Iterable[str] = ()) -> list[str]:
    """BibTeX of everything that was used, each work once: what the names cite, then `entries`.

    A name counts by its parts as well: "transreid-vit" cites "transreid", "oskt.refine" cites "oskt".
    """
    parts = {part for name in names if name for part in (name, *re.split(r"[-./ ]", name.lower()))}
    named = [method.citation for name, method in METHODS.items() if name in parts]
    named += [entry for name, entry in CITATIONS.items() if name in parts]
    works = {}
    for text in (*named, *entries):
        for entry in re.split(r"\n(?=@)", text.strip()):
            if entry:
                works.setdefault(entry.partition(",")[0], entry)
    return list(works.values())
