"""Reference pictures of every kind that people have."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin

from impasto.data.references import read
from impasto.errors import UserError


def save(path, image, **options):
    image.save(path, **options)
    return path


def quiet_read(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read(path)


def test_a_plain_picture(tmp_path):
    reference = quiet_read(save(tmp_path / "a.png", Image.new("RGB", (40, 20), (255, 0, 127))))
    assert reference.image.mode == "RGB" and len(reference.sha256) == 64
    pixels = reference.pixels(16)
    assert pixels.shape == (1, 3, 16, 16) and pixels.dtype == torch.float32
    assert pixels[0, :, 0, 0].tolist() == pytest.approx([1, -1, 127 / 127.5 - 1])


def test_the_middle_square_is_used(tmp_path):
    image = Image.new("RGB", (48, 16), "black")
    image.paste("white", (16, 0, 32, 16))
    assert quiet_read(save(tmp_path / "a.png", image)).pixels(16).min() == 1


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "LAB", "HSV"])
def test_other_modes_become_rgb(tmp_path, mode):
    image = Image.new("RGB", (16, 16), "white").convert(mode)
    suffix = {"CMYK": "jpg", "YCbCr": "jpg", "LAB": "tiff", "HSV": "tiff"}.get(mode, "png")
    if mode == "HSV":
        image = image.convert("RGB")
    reference = quiet_read(save(tmp_path / f"a.{suffix}", image))
    assert reference.image.mode == "RGB" and np.asarray(reference.image).min() > 250


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    pixels = np.asarray(quiet_read(save(tmp_path / "a.png", Image.fromarray(ramp))).image)[..., 0]
    assert abs(pixels.astype(int) - np.arange(256).reshape(16, 16)).max() <= 1


def profile(space, tags, pcs=b"XYZ ", kind=b"mntr"):
    """An ICC profile (ICC.1:2022, 7): header, table, tags."""
    at, table, body = 132 + 12 * (len(tags) + 1), struct.pack(">I", len(tags) + 1), b""
    for name, data in {b"wtpt": xyz(0.9642, 1, 0.8249), **tags}.items():
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", at + len(body), b"lcms", 0x02400000, kind, space, pcs)
    head += bytes(12) + b"acsp" + bytes(28) + s15(0.9642, 1, 0.8249)
    return head + bytes(128 - len(head)) + table + body


def s15(*values):
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def xyz(*values):
    return b"XYZ \0\0\0\0" + s15(*values)


def gamma(value):
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256))


SRGB_CURVE = b"curv\0\0\0\0" + struct.pack(">I", 1024)
SRGB_CURVE += b"".join(
    struct.pack(">H", round(65535 * (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4)))
    for x in np.linspace(0, 1, 1024)
)
SRGB = (0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141)
P3 = (0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407)


def rgb_profile(primaries, curve=SRGB_CURVE, extra=None):
    """primaries: XYZ of red, green, blue, to D50. extra: tags beside."""
    tags = {name + b"XYZ": xyz(*values) for name, values in zip((b"r", b"g", b"b"), primaries, strict=True)}
    return profile(b"RGB ", (extra or {}) | tags | {name + b"TRC": curve for name in (b"r", b"g", b"b")})


def cmyk_profile():
    """Paper is white, full cyan is a grey of L* 50, everything else black."""
    lut = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + s15(1, 0, 0, 0, 1, 0, 0, 0, 1) + bytes(range(256)) * 4
    lightness = [255] + [0] * 7 + [128] + [0] * 7  # cyan varies slowest
    return profile(
        b"CMYK",
        {b"A2B0": lut + b"".join(bytes((value, 128, 128)) for value in lightness) + bytes(range(256)) * 3},
        b"Lab ",
        b"prtr",
    )


def test_display_p3_is_told_in_srgb(tmp_path):
    """By hand: the curve is sRGB's, so only the matrices differ. Red of sRGB is (234, 51, 35) there."""
    colours = [(234, 51, 35), (120, 130, 140), (200, 180, 170), (0, 0, 0), (255, 255, 255), (64, 90, 60)]
    linear = np.array(colours) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    linear = (linear @ np.array(P3) @ np.linalg.inv(np.array(SRGB))).clip(0, 1)
    expected = 255 * np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    for i, (colour, told) in enumerate(zip(colours, expected, strict=True)):
        image = Image.new("RGB", (16, 16), colour)
        reference = quiet_read(save(tmp_path / f"{i}.png", image, icc_profile=rgb_profile(P3)))
        assert reference.image.getpixel((3, 3)) == pytest.approx(told, abs=1.5)
        assert "icc_profile" not in reference.image.info
    image = Image.new("RGBA", (16, 16), (234, 51, 35, 255))
    image.paste((234, 51, 35, 0), (0, 0, 8, 16))
    with pytest.warns(UserWarning, match="transparent"):
        reference = read(save(tmp_path / "a.png", image, icc_profile=rgb_profile(P3)))
    assert reference.image.getpixel((12, 3)) == pytest.approx((255, 0, 0), abs=1.5)
    assert reference.image.getpixel((3, 3)) == (255, 255, 255) and reference.alpha.getpixel((3, 3)) == 0
    image = Image.new("RGB", (16, 16), (234, 51, 35)).quantize(2)
    assert quiet_read(save(tmp_path / "p.png", image, icc_profile=rgb_profile(P3))).image.getpixel((3, 3))[0] >= 254


def test_a_png_keeps_the_colours_of_a_profile_of_megabytes(tmp_path):
    """A printer's tables may be that large; Pillow alone refuses such a picture."""
    padded = rgb_profile(P3, extra={b"junk": np.random.default_rng(0).bytes(3 << 20)})
    path = save(tmp_path / "a.png", Image.new("RGB", (16, 16), (234, 51, 35)), icc_profile=padded)
    with pytest.raises(ValueError, match="too large"):
        Image.open(path)
    assert quiet_read(path).image.getpixel((3, 3)) == pytest.approx((255, 0, 0), abs=1.5)
    data = path.read_bytes()
    at = data.index(b"iCCP") + 1000
    path.write_bytes(data[:at] + bytes(8) + data[at + 8 :])
    with pytest.warns(UserWarning, match="colour profile that is damaged"):
        assert read(path).image.getpixel((3, 3)) == (234, 51, 35)


@pytest.mark.parametrize("own", [rgb_profile(SRGB), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()])
def test_a_profile_of_srgb_changes_nothing(tmp_path, own):
    image = Image.effect_noise((64, 64), 90)
    image = Image.merge("RGB", (image, image.rotate(90), image.rotate(180)))
    assert quiet_read(save(tmp_path / "a.png", image, icc_profile=own)).image.tobytes() == image.tobytes()
    grey = image.convert("L")
    assert quiet_read(save(tmp_path / "b.png", grey, icc_profile=own)).image.tobytes() == grey.convert("RGB").tobytes()


def test_profiles_of_grey_and_of_ink(tmp_path):
    grey = profile(b"GRAY", {b"kTRC": gamma(1)})
    for i, image in enumerate((Image.new("L", (16, 16), 55), Image.new("LA", (16, 16), (55, 255)))):
        found = quiet_read(save(tmp_path / f"{i}.png", image, icc_profile=grey)).image
        assert found.getpixel((3, 3)) == pytest.approx((128, 128, 128), abs=1)  # 255 sRGB(55 / 255)
    for colour, told in (((0, 0, 0, 0), 255), ((255, 0, 0, 0), 119), ((0, 0, 0, 255), 0)):
        path = save(tmp_path / "a.tif", Image.new("CMYK", (16, 16), colour), icc_profile=cmyk_profile())
        assert quiet_read(path).image.getpixel((3, 3)) == pytest.approx((told,) * 3, abs=1)


@pytest.mark.parametrize("own", [b"no profile", rgb_profile(P3)[:300], cmyk_profile(), profile(b"GRAY", {})])
def test_a_profile_that_does_not_fit_is_said_and_ignored(tmp_path, own):
    path = save(tmp_path / "a.png", Image.new("RGB", (16, 16), (234, 51, 35)), icc_profile=own)
    with pytest.warns(UserWarning, match="colour profile that is damaged or of another kind.*read as sRGB") as said:
        assert read(path).image.getpixel((3, 3)) == (234, 51, 35)
    assert len(said) == 1


def test_transparency_goes_on_white_and_is_said_once(tmp_path):
    image = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    with pytest.warns(UserWarning, match="transparent: it is put on white") as said:
        reference = read(save(tmp_path / "a.png", image))
    assert len(said) == 1 and np.asarray(reference.image).min() == 255
    opaque = Image.new("RGBA", (16, 16), (255, 0, 0, 255))
    assert quiet_read(save(tmp_path / "b.png", opaque)).image.getpixel((0, 0)) == (255, 0, 0)


def test_sixteen_bits_of_grey_with_a_transparent_level(tmp_path):
    values = np.full((16, 16), 1000, dtype=np.uint16)
    values[:8], values[8] = 1001, 999
    with pytest.warns(UserWarning, match="transparent"):
        reference = read(save(tmp_path / "a.png", Image.fromarray(values), transparency=1001))
    assert np.asarray(reference.image)[..., 0].tolist() == [[255] * 16] * 8 + [[4] * 16] * 8
    assert np.asarray(reference.alpha).tolist() == [[0] * 16] * 8 + [[255] * 16] * 8
    assert quiet_read(save(tmp_path / "b.png", Image.fromarray(values), transparency=7)).alpha is None


def test_long_texts_do_not_stop_a_png(tmp_path):
    """Compressed or not, before the pixels or behind them; the limits of Pillow are as they were."""
    image, info = Image.effect_noise((64, 64), 90), PngImagePlugin.PngInfo()
    limits = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    info.add_itxt("workflow", "x" * 2_000_000, zip=True)
    info.add_text("workflow", "x" * 2_000_000, zip=True), info.add_text("prompt", "x" * 70_000_000)
    path = save(tmp_path / "a.png", image, pnginfo=info, dpi=(72, 72))
    assert quiet_read(path).image.tobytes() == image.convert("RGB").tobytes()
    data = path.read_bytes()
    for end in (len(data) - 30, len(data) // 2, 60):
        path.write_bytes(data[:end])
        with pytest.raises(UserError, match=r"damaged|not a picture"):
            read(path)
    assert limits == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


def test_a_png_may_say_which_side_is_up(tmp_path):
    exif, info, raw = Image.Exif(), PngImagePlugin.PngInfo(), PngImagePlugin.PngInfo()
    exif[0x0112] = 6
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>', zip=True)
    data = exif.tobytes()
    raw.add_text("Raw profile type exif", f"\nexif\n{len(data):8}\n{data.hex()}\n", zip=True)
    for i, options in enumerate(({"exif": exif}, {"pnginfo": info}, {"pnginfo": raw})):
        assert quiet_read(save(tmp_path / f"{i}.png", Image.new("RGB", (30, 10)), **options)).image.size == (10, 30)


def test_a_palette_with_transparency(tmp_path):
    image = Image.new("RGB", (16, 16), "blue").quantize(4)
    with pytest.warns(UserWarning, match="transparent"):
        reference = read(save(tmp_path / "a.png", image, transparency=0))
    assert reference.image.getpixel((3, 3)) == (255, 255, 255)


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    with pytest.warns(UserWarning, match="several frames"):
        reference = read(save(tmp_path / "a.webp", frames[0], save_all=True, append_images=frames[1:], lossless=True))
    assert reference.image.getpixel((0, 0)) == (255, 0, 0)


def test_a_photograph_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert quiet_read(save(tmp_path / "a.jpg", Image.new("RGB", (30, 10)), exif=exif)).image.size == (10, 30)


def test_a_small_picture_is_said(tmp_path):
    path = save(tmp_path / "a.png", Image.new("RGB", (16, 16)))
    with pytest.warns(UserWarning, match="will be enlarged to 128 x 128"):
        read(path, 128)


def png_header(width, height):
    """A PNG that claims a size, and holds one row at most."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")
    )


def bmp():
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "BMP")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello, I am a text", "not a picture"),
        (b"\x89PNG\r\n\x1a\n", "not a picture|damaged"),
        (png_header(50_000, 50_000), "too large"),
        (png_header(11_000, 11_000), "too large"),
        (png_header(1, 1), "too small"),
        (png_header(40, 40), "damaged"),
        (bmp()[:200], "damaged"),
    ],
    ids=["empty", "text", "signature", "huge", "large", "pixel", "torn", "torn-bmp"],
)
def test_bad_files_are_named(tmp_path, content, message):
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path / "bad.png")
    assert "bad.png" in str(error.value) and "\n" not in str(error.value)


def test_an_animation_that_was_cut_is_damaged_or_read_but_no_crash(tmp_path):
    frames = [Image.effect_noise((24, 24), 60 + i).convert("P") for i in range(5)]
    frames[0].save(tmp_path / "whole.gif", save_all=True, append_images=frames[1:])
    data, said = (tmp_path / "whole.gif").read_bytes(), set()
    for end in range(20, len(data), 7):
        (tmp_path / "cut.gif").write_bytes(data[:end])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(tmp_path / "cut.gif")
        except UserError as error:
            said.add("damaged" in str(error))
    assert True in said


def test_whatever_a_reader_raises_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "a.gif").write_bytes(bmp())
    for error in (IndexError("index out of range"), RuntimeError("Failed to decode"), TypeError("x")):
        monkeypatch.setattr("impasto.data.references.decode", lambda *a, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(UserError, match="is damaged"):
            read(tmp_path / "a.gif")


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match="is a folder"):
        read(tmp_path)
    with pytest.raises(UserError, match="floating-point"):
        read(save(tmp_path / "a.tiff", Image.new("F", (16, 16))))
