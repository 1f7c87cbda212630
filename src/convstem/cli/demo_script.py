"""Demo: classify real images with our smallest model, created by name in timm and in torchvision.

It is a script because it must not import convstem: the names resolve without that. ``convstem demo`` runs it.
Usage: python demo_script.py SAMPLES_DIR OUT_DIR
"""

import json
import sys
from pathlib import Path

import timm
import torch
import torchvision
from PIL import Image, ImageDraw


def read_samples(folder):
    """Return the images (list of PIL images), their class indices, the class names and the attribution."""
    info = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    sheet, names = Image.open(folder / "images.png").convert("RGB"), info["classes"]
    boxes = [(32 * x, 32 * y) for y in range(sheet.height // 32) for x in range(sheet.width // 32)]
    images = [sheet.crop((x, y, x + 32, y + 32)) for x, y in boxes]
    return images, [index % len(names) for index in range(len(images))], names, info["attribution"]


def draw(images, labels, predictions, names, path, zoom=3, caption=26):
    """Save the images as a grid. Below each is the prediction: green if right, red with the true label if wrong."""
    columns, side = len(names), 32 * zoom
    grid = Image.new("RGB", (columns * side, -(-len(images) // columns) * (side + caption)), "white")
    pen = ImageDraw.Draw(grid)
    for i, (image, label, guess) in enumerate(zip(images, labels, predictions, strict=True)):
        x, y = i % columns * side, i // columns * (side + caption)
        grid.paste(image.resize((side, side), Image.Resampling.NEAREST), (x, y))
        right = label == guess
        text = names[guess] if right else f"{names[guess]}\n(is {names[label]})"
        pen.text((x + 3, y + side), text, fill="green" if right else "red", spacing=0)
    grid.save(path)


def main(samples, out):
    """Classify the samples with timm and torchvision, print a table and save the picture."""
    images, labels, names, attribution = read_samples(Path(samples))

    model = timm.create_model("vit_nano4_convstem", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    batch = torch.stack([transform(image) for image in images])
    with torch.inference_mode():
        logits = model(batch)
    predictions = logits.argmax(1).tolist()

    print(f"{'image':>5}  {'label':<12}{'prediction':<12}{'probability':>11}")
    for i, (label, guess) in enumerate(zip(labels, predictions, strict=True)):
        mark = "" if label == guess else "  <- wrong"
        print(f"{i:>5}  {names[label]:<12}{names[guess]:<12}{logits[i].softmax(0).max():>11.3f}{mark}")
    correct = sum(label == guess for label, guess in zip(labels, predictions, strict=True))
    print(f"timm: {correct} of {len(images)} right ({100 * correct / len(images):.1f} %)")

    Path(out).mkdir(parents=True, exist_ok=True)
    picture = Path(out) / "predictions.png"
    draw(images, labels, predictions, names, picture)

    twin = torchvision.models.get_model("vit_nano_4_convstem", weights="DEFAULT").eval()
    with torch.inference_mode():
        difference = (twin(batch) - logits).abs().max().item()
    print(f"torchvision: same images, largest logit difference to timm {difference:.1e}")
    print(f"picture: {picture}\nimages: {attribution}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
