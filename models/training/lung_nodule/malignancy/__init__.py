"""How suspicious radiologists found a nodule: recurrent attention on the nodule volumes of LIDC-IDRI."""
