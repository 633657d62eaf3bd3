"""Generated chest X-rays for findings that few patients have: a diffusion model, what is drawn, what of it is kept.

config.py        what makes a generator, as a YAML file of this folder or the user's
records.py       generator.json of a trained generator, generate.json of a folder of generated images
request.py       the options of the command
conditions.py    which findings an image is to show: drawn from the training rows
training_rows.py the images that a generator learns, and what it keeps of them
diffusion.py     the network of `diffusers`, its conditions, latents and noise
training.py      training, stopped and gone on with at any step
sampling.py      images from noise, by Ray Data, a seed an image
teacher.py       what a classifier makes of them that has not seen the patients they descend from
copies.py        near-copies of training images, by frozen features
filtering.py     which images are kept, and why the others are not
cohort_folder.py the images as a cohort that a sweep joins by --cohort synthetic=DIR
"""
