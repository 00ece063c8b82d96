"""Draws docs/images/sinusoid.png: the position table of Vaswani et al. 2017, section 3.5.

python docs/draw_sinusoid.py
"""

from pathlib import Path

from matplotlib.figure import Figure

from jaxformer.layers.positions import sinusoidal_positions

LENGTH, WIDTH = 100, 128


def main() -> None:
    """Draw the table, and some of its columns as the waves they are."""
    table = sinusoidal_positions(LENGTH, WIDTH)
    figure = Figure(figsize=(8, 5.5), dpi=150, layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(1.5, 1))
    image = above.imshow(table.T, cmap="RdBu", vmin=-1, vmax=1, aspect="auto", origin="lower")
    above.set_ylabel(f"dimension (of D = {WIDTH})")
    above.set_xlabel("position")
    figure.colorbar(image, ax=above, label="PE")
    for column in (4, 5, 20, 21, 60):
        below.plot(table[:, column], label=f"dimension {column}")
    below.set_xlabel("position")
    below.set_ylabel("PE")
    below.spines[["top", "right"]].set_visible(False)
    below.legend(ncols=5, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.22), frameon=False)
    below.set_xlim(0, LENGTH - 1)
    figure.savefig(Path(__file__).parent / "images" / "sinusoid.png")


if __name__ == "__main__":
    main()
