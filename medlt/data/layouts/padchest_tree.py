"""The tree of PadChest's labels: which label implies which (Bustos et al., Med Image Anal 2020, arXiv 1901.07441).

The roots (radiological finding, differential diagnosis, localization) are no labels, and places are left out. Where the
tree has a label at two places of which one is inside the other, only the outer one holds for every image and is kept:
an adenopathy is not always hilar, an air bronchogram not always in a consolidation, a hernia does not always widen the
mediastinum. A label at two other places implies the labels above both: a hydropneumothorax is a pneumothorax and an
effusion.
"""

from __future__ import annotations

from graphlib import TopologicalSorter

import pandas as pd

_CHILDREN = {
    "calcified densities": "calcified granuloma, calcified adenopathy, calcified pleural thickening, "
    "calcified pleural plaques, heart valve calcified, calcified fibroadenoma",
    "calcified adenopathy": "calcified mediastinal adenopathy",
    "granuloma": "calcified granuloma",
    "adenopathy": "calcified adenopathy",
    "nodule": "multiple nodules",
    "pseudonodule": "nipple shadow",
    "pneumothorax": "hydropneumothorax",
    "infiltrates": "interstitial pattern, alveolar pattern",
    "interstitial pattern": "ground glass pattern, reticular interstitial pattern, "
    "reticulonodular interstitial pattern, miliary opacities",
    "alveolar pattern": "consolidation, air bronchogram",
    "atelectasis": "total atelectasis, lobar atelectasis, segmental atelectasis, laminar atelectasis, "
    "round atelectasis, atelectasis basal",
    "fissure thickening": "minor fissure thickening, major fissure thickening, loculated fissural effusion",
    "pleural thickening": "apical pleural thickening, calcified pleural thickening",
    "pleural plaques": "calcified pleural plaques",
    "pleural effusion": "loculated pleural effusion, loculated fissural effusion, hydropneumothorax, empyema, "
    "hemothorax",
    "vascular redistribution": "central vascular redistribution",
    "hilar enlargement": "vascular hilar enlargement",
    "vascular hilar enlargement": "pulmonary artery enlargement",
    "aortic elongation": "descendent aortic elongation, ascendent aortic elongation, aortic button enlargement, "
    "supra aortic elongation",
    "mediastinal enlargement": "superior mediastinal enlargement, descendent aortic elongation, "
    "ascendent aortic elongation, mediastinal mass",
    "superior mediastinal enlargement": "goiter, supra aortic elongation",
    "mass": "mediastinal mass, breast mass, pulmonary mass, soft tissue mass",
    "thoracic cage deformation": "scoliosis, kyphosis, pectum excavatum, pectum carinatum, cervical rib",
    "vertebral degenerative changes": "vertebral compression",
    "vertebral compression": "vertebral anterior compression",
    "sclerotic bone lesion": "blastic bone lesion",
    "fracture": "clavicle fracture, humeral fracture, vertebral fracture, rib fracture",
    "rib fracture": "callus rib fracture",
    "catheter": "central venous catheter",
    "central venous catheter": "central venous catheter via subclavian vein, "
    "central venous catheter via jugular vein, reservoir central venous catheter, "
    "central venous catheter via umbilical vein",
    "electrical device": "dual chamber device, single chamber device, pacemaker, dai",
    "artificial heart valve": "artificial mitral heart valve, artificial aortic heart valve",
    "surgery": "metal, bone cement, prosthesis, surgery breast, surgery neck, surgery lung, surgery heart, "
    "surgery humeral",
    "metal": "osteosynthesis material, sternotomy, suture material",
    "prosthesis": "humeral prosthesis, mammary prosthesis, endoprosthesis",
    "endoprosthesis": "aortic endoprosthesis",
    "surgery breast": "mastectomy",
    "pneumonia": "atypical pneumonia",
    "atypical pneumonia": "viral pneumonia",
    "viral pneumonia": "covid 19, covid 19 uncertain",
    "tuberculosis": "tuberculosis sequelae",
    "pulmonary fibrosis": "post radiotherapy changes, asbestosis signs",
    "pulmonary hypertension": "pulmonary artery hypertension, pulmonary venous hypertension",
}
CHILDREN = {parent: tuple(children.split(", ")) for parent, children in _CHILDREN.items()}
"""Label -> the labels that imply it, in the lower case of `medlt.data.layouts.padchest`."""


def implied(flags: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return 0/1 columns with 1 for every label above a present one, and label -> number of images that gained it.

    A label that no list names is a new column, if one that implies it is there.
    """
    flags, gained = flags.copy(), dict[str, int]()
    for label in TopologicalSorter(CHILDREN).static_order():  # children come first
        below = [child for child in CHILDREN.get(label, ()) if child in flags]
        if not below:
            continue
        present = flags[below].eq(1).any(axis=1)
        own = flags[label] if label in flags else pd.Series(0.0, flags.index)
        if count := int((present & own.ne(1)).sum()):
            flags[label], gained[label] = own.mask(present, 1.0), count
    return flags[sorted(flags)], gained
