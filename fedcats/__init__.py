"""fedcats: what does an image classifier lose when the photos stay on N devices?"""

__version__ = "0.1.0"
