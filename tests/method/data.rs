//! Data files and images as users have them, the broken ones too.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use bdhs::data::{
    Dataset, DatasetOptions, Picture, Sample, TextRow, TurnChoice, image as images, read_texts,
};
use bdhs::models::Role;
use image::codecs::gif::GifEncoder;
use image::{
    DynamicImage, GrayAlphaImage, ImageBuffer, ImageFormat, Luma, Rgb, RgbImage, Rgba, RgbaImage,
};
use tempfile::TempDir;

/// A folder with two pictures, and data files written on demand.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        for name in ["a.png", "sub/b.png"] {
            RgbImage::new(2, 2).save(folder.path().join(name)).unwrap();
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    fn open(&self, text: impl AsRef<[u8]>, turn: TurnChoice) -> bdhs::Result<Dataset> {
        let options = DatasetOptions { turn, ..DatasetOptions::default() };
        Dataset::open(&self.write("data.json", text), &options)
    }

    fn error(&self, text: impl AsRef<[u8]>) -> String {
        self.open(text, TurnChoice::Last).unwrap_err().to_string()
    }
}

/// All samples.
fn all(data: &Dataset) -> Vec<Sample> {
    data.read(0..data.len()).unwrap()
}

const TWO_TURNS: &str = r#"[{"id": 7, "image": "a.png", "conversations": [
  {"from": "system", "value": "Be kind."},
  {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."},
  {"from": "human", "value": "Why?"}, {"from": "gpt", "value": " It is\n so. "},
  {"from": "human", "value": "Thanks."}]}]"#;

fn turns(dataset: &Dataset, sample: usize) -> Vec<(Role, String)> {
    let sample = dataset.read(sample..sample + 1).unwrap().remove(0);
    sample.turns.into_iter().map(|turn| (turn.role, turn.text)).collect()
}

fn said(role: Role, text: &str) -> (Role, String) {
    (role, text.to_owned())
}

// ---- rows ----

#[test]
fn last_answer_is_the_reference_and_earlier_turns_are_context() {
    let folder = Folder::new();
    let data = folder.open(TWO_TURNS, TurnChoice::Last).unwrap();
    let sample = &all(&data)[0];
    assert_eq!(
        (sample.index, sample.id.as_str(), sample.place.as_str()),
        (0, "7", "line 1 (element 0)")
    );
    assert_eq!(sample.reference, " It is\n so. ", "byte for byte");
    assert_eq!(
        turns(&data, 0),
        [
            said(Role::System, "Be kind."),
            said(Role::User, "<image>\nWhat is it?"),
            said(Role::Assistant, "A cat."),
            said(Role::User, "Why?")
        ]
    );
    assert_eq!(sample.key_turns()[1], ("human", "<image>\nWhat is it?"));
}

#[test]
fn first_answer_or_each_answer_on_demand() {
    let folder = Folder::new();
    let first = folder.open(TWO_TURNS, TurnChoice::First).unwrap();
    assert_eq!((first.len(), all(&first)[0].reference.as_str()), (1, "A cat."));
    assert_eq!(turns(&first, 0).len(), 2);
    let each = folder.open(TWO_TURNS, TurnChoice::Each).unwrap();
    let rows: Vec<_> = all(&each).into_iter().map(|s| (s.index, s.id, s.reference)).collect();
    let row = |index, id: &str, text: &str| (index, id.to_owned(), text.to_owned());
    assert_eq!(rows, [row(0, "7#1", "A cat."), row(1, "7#2", " It is\n so. ")]);
}

#[test]
fn jsonl_simple_rows_bom_crlf_and_blank_lines() {
    let text = "\u{feff}{\"id\": \"a\", \"image\": \"a.png\", \"prompt\": \"What?\", \"chosen\": \"A cat\"}\r\n\r\n   \n\
                {\"id\": 2, \"image\": null, \"prompt\": \"Why?\", \"reference\": \"مرحبا 😀\", \"extra\": 1}\r\n";
    let folder = Folder::new();
    let data = folder.open(text, TurnChoice::Last).unwrap();
    let rows: Vec<_> =
        all(&data).into_iter().map(|s| (s.index, s.id, s.reference, s.place)).collect();
    let row = |index, id: &str, text: &str, place: &str| {
        (index, id.to_owned(), text.to_owned(), place.to_owned())
    };
    assert_eq!(rows, [row(0, "a", "A cat", "line 1"), row(1, "2", "مرحبا 😀", "line 4")]);
    assert_eq!(turns(&data, 0), [said(Role::User, "<image>\nWhat?")]);
    assert_eq!(turns(&data, 1), [said(Role::User, "Why?")]);
}

#[test]
fn references_of_every_size_are_taken_as_they_are() {
    for reference in ["Yes", "no full stop", "😀", "نعم.", &"word ".repeat(10_000)] {
        let row = serde_json::json!({"id": "x", "prompt": "?", "chosen": reference}).to_string();
        assert_eq!(
            all(&Folder::new().open(row, TurnChoice::Last).unwrap())[0].reference,
            reference
        );
    }
}

#[test]
fn several_images_keep_their_order_and_only_those_seen_are_taken() {
    let text = r#"{"id": "x", "image": ["sub/b.png", "./a.png"], "conversations": [
        {"from": "human", "value": "First <image> here"}, {"from": "gpt", "value": "A."},
        {"from": "human", "value": "Then <image>"}, {"from": "gpt", "value": "B."}]}"#
        .replace('\n', " ");
    let folder = Folder::new();
    let names = |turn| {
        let data = folder.open(&text, turn).unwrap();
        let image = |image: &Picture| {
            image.file().unwrap().file_name().unwrap().to_str().unwrap().to_owned()
        };
        all(&data)[0].images.iter().map(image).collect::<Vec<_>>()
    };
    assert_eq!(names(TurnChoice::Last), ["b.png", "a.png"]);
    assert_eq!(names(TurnChoice::First), ["b.png"]);
    let data = folder.open(&text, TurnChoice::First).unwrap();
    assert_eq!(turns(&data, 0), [said(Role::User, "<image>\nFirst  here")]);
}

#[test]
fn placeholders_must_match_the_images() {
    let folder = Folder::new();
    let row = |image: &str, prompt: &str| {
        format!(r#"{{"id": "x", "image": {image}, "prompt": "{prompt}", "chosen": "A."}}"#)
    };
    let error = folder.error(row(r#""a.png""#, "<image> <image>"));
    assert!(
        error.contains("line 1: field image: 1 paths, but the human turns hold 2 <image>"),
        "{error}"
    );
    assert!(folder.error(row("null", "<image>")).contains("0 paths"));
    let conversation = r#"{"id": "x", "image": "a.png", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "A"}]}"#;
    let data = folder.open(conversation, TurnChoice::Last).unwrap();
    assert_eq!(turns(&data, 0), [said(Role::User, "<image>\n?")], "put in front");
    let in_answer = r#"{"id": "x", "prompt": "?", "chosen": "see <image>"}"#;
    assert!(folder.error(in_answer).contains("field chosen: holds <image>"));
}

// ---- errors ----

#[test]
fn repeated_and_missing_ids_become_unique() {
    let folder = Folder::new();
    let row = |id: &str| format!("{{\"id\": {id}, \"prompt\": \"?\", \"chosen\": \"A.\"}}\n");
    let ids = |text: &str| {
        let data = folder.open(text, TurnChoice::Last).unwrap();
        all(&data).into_iter().map(|s| s.id).collect::<Vec<_>>()
    };
    let text = [row("1"), row("2"), row("\"1\""), row("\"1#2\""), row("1"), row("null")].concat();
    assert_eq!(ids(&text), ["1", "2", "1#2", "1#2#2", "1#3", "row-6"]);
    assert_eq!(ids("{\"prompt\": \"?\", \"chosen\": \"A\"}"), ["row-1"]);

    // A suffix does not depend on what is left out.
    let bad = "{\"id\": 1, \"prompt\": \" \", \"chosen\": \"A\"}\n";
    let path = folder.write("odd.jsonl", [bad, &row("1"), bad, &row("1")].concat());
    let data = Dataset::list(&[path], &DatasetOptions::default()).unwrap();
    let ids: Vec<_> = all(&data).into_iter().map(|s| s.id).collect();
    assert_eq!(ids, ["1#2", "1#4"]);
    assert_eq!(data.skipped().len(), 2);
}

#[test]
fn malformed_json_names_file_line_and_column() {
    let folder = Folder::new();
    let good = r#"{"id": 1, "prompt": "?", "chosen": "A."}"#;
    let error = folder.error(format!("{good}\n{{\"id\": 2, \"prompt\" \"?\"}}\n{good}\n"));
    assert!(
        error.contains("data.json: line 2: is not valid JSON: expected `:`, at column 20"),
        "{error}"
    );
    let error =
        folder.error(format!("[{good},\n\n  {{\"id\": 2,\n   \"prompt\": tru}},\n {good}]"));
    assert!(
        error.contains("line 4 (element 1): is not valid JSON") && error.contains("at column 17"),
        "{error}"
    );
    for (text, message) in [
        (
            format!("[{good},\n{{\"id\": \"open}}]\n"),
            "(element 1): is not valid JSON: control character",
        ),
        (format!("[{good}\n"), "line 2: the file ends inside the array"),
        (format!("[{good},\n"), "line 2: the file ends inside the array"),
        (format!("[{good},\n]"), "line 1: has a comma without an element"),
        (format!("[{good}\n,,{good}]"), "line 2: has a comma without an element"),
        (format!("[{good}]\n{good}"), "line 1: has text after the end of the array"),
        (format!("[{good}, 5]"), "line 1 (element 1): is 5, expected an object"),
        (format!("{good}\n[]\n"), "line 2: is a list, expected an object"),
        ("[]".to_owned(), "has no rows"),
        ("\n \n".to_owned(), "has no rows"),
        ("{\"id\": \"\\ud83d\"}".to_owned(), "line 1: is not valid JSON"),
    ] {
        let error = folder.error(&text);
        assert!(error.contains("data.json") && error.contains(message), "{text}\n{error}");
    }
    let error = folder.error(b"{}\n\n{\"id\": \"\xff\"}");
    assert!(error.contains("line 3: is not UTF-8"), "{error}");
}

#[test]
fn brackets_commas_and_quotes_inside_strings_are_text() {
    let text = r#"[{"id": "x", "prompt": "a ], \" [ {", "chosen": "} , \\"}, {"id": "y", "prompt": "?", "chosen": "]"}]"#;
    let data = Folder::new().open(text, TurnChoice::Last).unwrap();
    let samples = all(&data);
    let rows: Vec<_> =
        samples.iter().map(|s| (s.turns[0].text.as_str(), s.reference.as_str())).collect();
    assert_eq!(rows, [("a ], \" [ {", "} , \\"), ("?", "]")]);
}

#[test]
fn wrong_fields_are_named() {
    let folder = Folder::new();
    for (row, message) in [
        (r#"{"id": 1.5, "prompt": "?", "chosen": "A"}"#, "field id: is 1.5"),
        (r#"{"id": [], "prompt": "?", "chosen": "A"}"#, "field id: is a list"),
        (r#"{"id": 1, "chosen": "A"}"#, "line 1: has the columns id, chosen, expected those of"),
        (r#"{"id": 1, "prompt": "?"}"#, "prompt-chosen"),
        (r#"{"id": 1, "prompt": "?"}"#, "--columns prompt=NAME"),
        (r#"{"id": 1, "prompt": "?", "chosen": ""}"#, "field chosen: is blank"),
        (r#"{"id": 1, "prompt": "?", "reference": " \n "}"#, "field reference: is blank"),
        (r#"{"id": 1, "prompt": "?", "chosen": 3}"#, "field chosen: is 3, expected a string"),
        (
            r#"{"id": 1, "prompt": "?", "chosen": "A", "reference": "B"}"#,
            "field reference are both there",
        ),
        (
            r#"{"id": 1, "image": 3, "prompt": "?", "chosen": "A"}"#,
            "field image: is 3, expected a path",
        ),
        (r#"{"id": 1, "image": "", "prompt": "?", "chosen": "A"}"#, "field image: is blank"),
        (r#"{"id": 1, "conversations": []}"#, "has no gpt turn"),
        (r#"{"id": 1, "conversations": "x"}"#, "is no list"),
        (r#"{"id": 1, "conversations": [{"from": "human", "value": "?"}]}"#, "has no gpt turn"),
        (
            r#"{"id": 1, "conversations": [{"from": "gpt", "value": "A"}]}"#,
            "conversations[0].from: is \"gpt\" out of turn",
        ),
        (
            r#"{"id": 1, "conversations": [{"from": "dog", "value": "A"}]}"#,
            "is \"dog\", expected human, gpt or system",
        ),
        (
            r#"{"id": 1, "conversations": [{"from": "human"}]}"#,
            "conversations[0].value: is null, expected a string",
        ),
        (
            r#"{"id": 1, "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": " "}]}"#,
            "conversations[1].value: is blank",
        ),
        (
            r#"{"id": 1, "conversations": [{"from": "human", "value": "?"}, {"from": "human", "value": "?"}]}"#,
            "conversations[1].from: is \"human\" out of turn",
        ),
    ] {
        let error = folder.error(row);
        assert!(error.contains(message), "{row}\n{error}");
    }
}

#[test]
fn image_paths_stay_inside_the_folder() {
    let folder = Folder::new();
    let outside = tempfile::tempdir().unwrap();
    RgbImage::new(1, 1).save(outside.path().join("out.png")).unwrap();
    let row = |image: &str| {
        serde_json::json!({"id": 1, "image": image, "prompt": "?", "chosen": "A"}).to_string()
    };
    for path in ["../x.png", "sub/../../x.png", "/etc/passwd"] {
        let error = folder.error(row(path));
        assert!(error.contains(&format!("{path:?} is absolute or has ..")), "{error}");
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(outside.path().join("out.png"), folder.path("link.png"))
            .unwrap();
        let error = folder.error(row("link.png"));
        assert!(error.contains("\"link.png\" leads to") && error.contains("outside"), "{error}");
        std::os::unix::fs::symlink(folder.path("a.png"), folder.path("inside.png")).unwrap();
        assert!(folder.open(row("inside.png"), TurnChoice::Last).is_ok());
    }
    assert!(folder.open(row("sub/../a.png"), TurnChoice::Last).is_ok());
    let absolute = folder.path("a.png");
    assert!(folder.open(row(absolute.to_str().unwrap()), TurnChoice::Last).is_ok());
    assert!(folder.error(row("missing.png")).contains("missing.png: No such file"));
    assert!(folder.error(row("sub")).contains("is not a file"));
    let options = DatasetOptions { image_folder: Some(folder.path("sub")), ..Default::default() };
    let data = Dataset::open(&folder.write("other.json", row("b.png")), &options).unwrap();
    assert!(all(&data)[0].images[0].name().ends_with("sub/b.png"));
}

#[test]
fn samples_without_an_image_need_rho_one() {
    let folder = Folder::new();
    let with = r#"{"id": 1, "image": "a.png", "prompt": "?", "chosen": "A"}"#;
    let without = r#"{"id": "text", "prompt": "?", "chosen": "A"}"#;
    let path = folder.write("data.jsonl", format!("{with}\n{without}"));
    assert_eq!(Dataset::open(&path, &DatasetOptions::default()).unwrap().len(), 2);
    let options = DatasetOptions { needs_picture: true, ..DatasetOptions::default() };
    let error = Dataset::open(&path, &options).unwrap_err().to_string();
    assert!(error.contains("line 2: sample \"text\" has no image"), "{error}");
    assert!(error.contains("rho = 1 only"), "{error}");
}

#[test]
fn text_rows() {
    let folder = Folder::new();
    let path = folder.write(
        "t.jsonl",
        "\u{feff}{\"id\": 1, \"text\": \"A\\n\"}\r\n\n{\"id\": \"b\", \"text\": \"\"}",
    );
    let row =
        |id: &str, text: &str, line| TextRow { id: id.to_owned(), text: text.to_owned(), line };
    assert_eq!(read_texts(&path).unwrap(), [row("1", "A\n", 1), row("b", "", 3)]);
    let error = |text: &str| read_texts(&folder.write("t.jsonl", text)).unwrap_err().to_string();
    assert!(
        error("{\"id\": 1, \"text\": \"\"}\n{\"id\": 1, \"text\": \"\"}")
            .contains("line 2: field id: \"1\" is there already, on line 1")
    );
    assert!(error("{\"id\": 1}").contains("line 1: field text: is missing"));
    assert!(
        read_texts(Path::new("/nowhere.jsonl")).unwrap_err().to_string().contains("/nowhere.jsonl")
    );
}

// ---- images ----

fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn decode(bytes: &[u8]) -> bdhs::Result<RgbImage> {
    images::decode(bytes, Path::new("x.bin"))
}

fn picture() -> RgbImage {
    RgbImage::from_fn(6, 4, |x, y| Rgb([(x * 40) as u8, (y * 60) as u8, 7]))
}

#[test]
fn formats_are_told_by_content() {
    let folder = Folder::new();
    for format in [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::Tiff, ImageFormat::WebP] {
        let path = folder.write("picture.jpg", encoded(picture(), format));
        assert_eq!(images::open(&path).unwrap(), picture(), "{format:?}");
    }
    let jpeg =
        images::open(&folder.write("picture.png", encoded(picture(), ImageFormat::Jpeg))).unwrap();
    assert_eq!(jpeg.dimensions(), (6, 4));
}

#[test]
fn alpha_is_dropped_not_blended() {
    let rgba = RgbaImage::from_fn(6, 4, |x, y| {
        let Rgb([r, g, b]) = *picture().get_pixel(x, y);
        Rgba([r, g, b, (x * 50) as u8])
    });
    assert_eq!(decode(&encoded(rgba, ImageFormat::Png)).unwrap(), picture());
    let grey = GrayAlphaImage::from_fn(2, 1, |x, _| image::LumaA([100 + x as u8, 0]));
    assert_eq!(
        decode(&encoded(grey, ImageFormat::Png)).unwrap().as_raw(),
        &[100, 100, 100, 101, 101, 101]
    );
}

#[test]
fn grey_and_sixteen_bit_samples_become_rgb_by_their_high_byte() {
    let grey = ImageBuffer::from_fn(2, 1, |x, _| Luma([[0x12FFu16, 0xFE80][x as usize]]));
    assert_eq!(
        decode(&encoded(grey, ImageFormat::Png)).unwrap().as_raw(),
        &[0x12, 0x12, 0x12, 0xFE, 0xFE, 0xFE]
    );
    let rgb: ImageBuffer<Rgb<u16>, _> =
        ImageBuffer::from_pixel(1, 1, Rgb([0x01FF, 0x8080, 0xFFFF]));
    assert_eq!(decode(&encoded(rgb, ImageFormat::Png)).unwrap().as_raw(), &[0x01, 0x80, 0xFF]);
    let grey8 = ImageBuffer::from_pixel(1, 1, Luma([9u8]));
    assert_eq!(decode(&encoded(grey8, ImageFormat::Png)).unwrap().as_raw(), &[9, 9, 9]);
}

#[test]
fn float_samples_are_refused() {
    let float: ImageBuffer<Rgb<f32>, _> = ImageBuffer::from_pixel(1, 1, Rgb([0.5, 0.5, 0.5]));
    let error = decode(&encoded(DynamicImage::ImageRgb32F(float), ImageFormat::Tiff))
        .unwrap_err()
        .to_string();
    assert!(error.contains("x.bin: has Rgb32F samples"), "{error}");
}

#[test]
fn animated_gif_gives_its_first_frame() {
    let mut bytes = Vec::new();
    let mut encoder = GifEncoder::new(&mut bytes);
    for colour in [[255, 0, 0, 255], [0, 255, 0, 255]] {
        encoder.encode_frame(image::Frame::new(RgbaImage::from_pixel(3, 2, Rgba(colour)))).unwrap();
    }
    drop(encoder);
    assert_eq!(decode(&bytes).unwrap(), RgbImage::from_pixel(3, 2, Rgb([255, 0, 0])));
}

/// A JPEG with an EXIF segment that holds nothing but an orientation.
fn with_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let mut exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
    exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
    let length = (exif.len() as u16 + 2).to_be_bytes();
    [&jpeg[..2], &[0xFF, 0xE1], &length, &exif, &jpeg[2..]].concat()
}

#[test]
fn exif_orientation_is_applied() {
    let left_white = RgbImage::from_fn(32, 16, |x, _| Rgb([if x < 16 { 255 } else { 0 }; 3]));
    let jpeg = encoded(left_white, ImageFormat::Jpeg);
    // Where white ends up: (size, white pixel, black pixel).
    for (orientation, size, white, black) in [
        (1, (32, 16), (2, 8), (29, 8)),
        (2, (32, 16), (29, 8), (2, 8)),
        (3, (32, 16), (29, 8), (2, 8)),
        (6, (16, 32), (8, 2), (8, 29)),
        (8, (16, 32), (8, 29), (8, 2)),
    ] {
        let image = decode(&with_orientation(&jpeg, orientation)).unwrap();
        assert_eq!(image.dimensions(), size, "{orientation}");
        assert!(
            image.get_pixel(white.0, white.1)[0] > 240 && image.get_pixel(black.0, black.1)[0] < 15,
            "{orientation}"
        );
    }
}

#[test]
fn cmyk_jpeg_as_pillow_reads_it() {
    let image = images::open(Path::new("tests/fixtures/cmyk.jpg")).unwrap();
    // Pillow 13: Image.open("cmyk.jpg").convert("RGB").getpixel(...).
    for (at, expected) in [((2, 3), [235, 51, 143]), ((12, 3), [57, 180, 195])] {
        let pixel = image.get_pixel(at.0, at.1);
        let worst = (0..3).map(|c| pixel[c].abs_diff(expected[c])).max();
        assert!(worst <= Some(2), "{pixel:?}, Pillow {expected:?}");
    }
}

#[test]
fn truncated_and_corrupt_files_are_errors() {
    let noisy = RgbImage::from_fn(64, 64, |x, y| {
        Rgb([(x * y) as u8, (x * 37 + y * 91) as u8, (x ^ y) as u8])
    });
    for format in [
        ImageFormat::Png,
        ImageFormat::Jpeg,
        ImageFormat::WebP,
        ImageFormat::Bmp,
        ImageFormat::Gif,
        ImageFormat::Tiff,
    ] {
        let bytes = encoded(noisy.clone(), format);
        assert!(decode(&bytes).is_ok(), "{format:?}");
        for part in [bytes.len() / 2, bytes.len() * 9 / 10] {
            let error = decode(&bytes[..part])
                .expect_err(&format!("{format:?} cut at {part} of {}", bytes.len()))
                .to_string();
            assert!(error.starts_with("x.bin: "), "{error}");
        }
    }
    let mut png = encoded(noisy, ImageFormat::Png);
    let middle = png.len() / 2;
    png[middle] ^= 0x55;
    assert!(decode(&png).unwrap_err().to_string().contains("cannot be decoded"));
    assert!(decode(b"").unwrap_err().to_string().contains("x.bin: is empty"));
    assert!(
        decode(b"<html>not found</html>")
            .unwrap_err()
            .to_string()
            .contains("no known image format")
    );
    assert!(
        images::open(Path::new("/nowhere.png")).unwrap_err().to_string().contains("/nowhere.png")
    );
}

#[test]
fn a_thumbnails_end_marker_does_not_complete_a_truncated_jpeg() {
    let thumbnail = encoded(RgbImage::new(8, 8), ImageFormat::Jpeg);
    let jpeg = encoded(picture(), ImageFormat::Jpeg);
    let length = (thumbnail.len() as u16 + 2).to_be_bytes();
    let with = [&jpeg[..2], &[0xFF, 0xED], &length, &thumbnail, &jpeg[2..]].concat();
    assert!(decode(&with).is_ok());
    assert!(decode(&with[..with.len() - 2]).unwrap_err().to_string().contains("truncated JPEG"));
    assert!(decode(&[&jpeg[..], b"garbage behind it"].concat()).is_ok());
}

#[test]
fn size_is_checked_before_decoding() {
    // Only headers: a decoder that went on would fail for another reason.
    let mut bmp = encoded(RgbImage::new(1, 1), ImageFormat::Bmp);
    bmp[18..22].copy_from_slice(&20_000i32.to_le_bytes());
    bmp[22..26].copy_from_slice(&20_000i32.to_le_bytes());
    let error = decode(&bmp).unwrap_err().to_string();
    assert!(
        error.contains("is 20000 x 20000 pixels")
            && error.contains(&images::MAX_PIXELS.to_string()),
        "{error}"
    );
    let mut jpeg = encoded(RgbImage::new(8, 8), ImageFormat::Jpeg);
    let frame = jpeg.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0x4E, 0x20, 0x4E, 0x20]);
    assert!(decode(&jpeg).unwrap_err().to_string().contains("is 20000 x 20000 pixels"));
    // The header chunk of a PNG: length, name, width and height, 16-bit RGBA, checksum.
    let header = [&b"IHDR"[..], &[0, 0, 0x4E, 0x20, 0, 0, 0x4E, 0x20, 16, 6, 0, 0, 0]].concat();
    let mut checksum = u32::MAX;
    for byte in &header {
        checksum ^= u32::from(*byte);
        for _ in 0..8 {
            checksum = checksum >> 1 ^ (0xEDB8_8320 & (checksum & 1).wrapping_neg());
        }
    }
    let start = [&b"\x89PNG\r\n\x1a\n\0\0\0\x0d"[..], &header, &(!checksum).to_be_bytes()].concat();
    let data = [&[0, 0, 0, 1][..], b"IDAT", &[0x78, 0, 0, 0, 0]].concat();
    let error = decode(&[start, data].concat()).unwrap_err().to_string();
    assert!(error.contains("is 20000 x 20000 pixels"), "{error}");
    // A long, thin one is within the limit.
    assert_eq!(
        decode(&encoded(RgbImage::new(20_000, 3), ImageFormat::Png)).unwrap().dimensions(),
        (20_000, 3)
    );
}

#[test]
fn content_hash_is_that_of_the_bytes() {
    let folder = Folder::new();
    let (a, b) = (folder.write("1", b"same"), folder.write("2", b"same"));
    assert_eq!(images::content_hash(&a).unwrap(), images::content_hash(&b).unwrap());
    assert_eq!(images::content_hash(&a).unwrap(), *blake3::hash(b"same").as_bytes());
    assert_ne!(
        images::content_hash(&folder.write("2", b"Same")).unwrap(),
        images::content_hash(&a).unwrap()
    );
}
