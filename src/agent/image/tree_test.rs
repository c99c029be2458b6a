//! Goal: whatever an image holds, nothing is touched outside of its folder, and it costs no more than
//! its limits. Method: archives made by hand, byte by byte.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use super::*;
use crate::agent::image::gunzip::GZIP_MAGIC;
use crate::agent::image::tar::tests::entry;

const SMALL: Limits = Limits { entries: 50, bytes: 1 << 20, names: 4096, looks: 100 };

struct Bench {
    folder: tempfile::TempDir,
    layers: Vec<(PathBuf, Form)>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("outside")).unwrap();
        fs::write(folder.path().join("outside/secret"), "secret").unwrap();
        Self { folder, layers: Vec::new() }
    }

    fn layer(mut self, entries: &[Vec<u8>]) -> Self {
        let path = self.folder.path().join(format!("layer{}", self.layers.len()));
        fs::write(&path, entries.concat()).unwrap();
        self.layers.push((path, Form::Archive));
        self
    }

    fn title(mut self, title: &str, content: &str) -> Self {
        let path = self.folder.path().join(format!("layer{}", self.layers.len()));
        fs::write(&path, content).unwrap();
        self.layers.push((path, Form::File(PathBuf::from(title))));
        self
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("tree")
    }

    fn unpack(&self) -> io::Result<u64> {
        self.unpack_within(LIMITS)
    }

    fn unpack_within(&self, limits: Limits) -> io::Result<u64> {
        let _ = fs::remove_dir_all(self.root());
        let done = unpack(&self.layers, &self.root(), limits, &CancellationToken::new());
        let outside: Vec<_> = fs::read_dir(self.folder.path().join("outside")).unwrap().collect();
        assert_eq!(outside.len(), 1, "something was made outside");
        let secret = fs::read_to_string(self.folder.path().join("outside/secret")).unwrap();
        assert_eq!(secret, "secret");
        done
    }

    fn refused(&self) -> String {
        let error = self.unpack().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        error.to_string()
    }

    /// Every path below the root, with what is in files and where links lead.
    fn shown(&self) -> Vec<String> {
        fn walk(at: &Path, below: &str, all: &mut Vec<String>) {
            for child in fs::read_dir(at).unwrap() {
                let child = child.unwrap();
                let name = format!("{below}{}", child.file_name().display());
                let kind = child.file_type().unwrap();
                if kind.is_dir() {
                    all.push(format!("{name}/"));
                    walk(&child.path(), &format!("{name}/"), all);
                } else if kind.is_symlink() {
                    let target = fs::read_link(child.path()).unwrap();
                    all.push(format!("{name} -> {}", target.display()));
                } else {
                    all.push(format!("{name}={}", fs::read_to_string(child.path()).unwrap()));
                }
            }
        }
        let mut all = Vec::new();
        walk(&self.root(), "", &mut all);
        all.sort();
        all
    }
}

fn file(name: &str, content: &str) -> Vec<u8> {
    entry(name, b'0', "", content.as_bytes())
}

fn link(name: &str, target: &str) -> Vec<u8> {
    entry(name, b'2', target, b"")
}

fn hard(name: &str, target: &str) -> Vec<u8> {
    entry(name, b'1', target, b"")
}

fn dir(name: &str) -> Vec<u8> {
    entry(name, b'5', "", b"")
}

#[test]
fn layers_lie_on_each_other_and_take_away() {
    let bench = Bench::new()
        .layer(&[
            dir("./"),
            dir("d/"),
            file("d/a", "1"),
            file("d/b", "1"),
            file("gone/x", "1"),
            file("o/lower", "1"),
            file("o/sub/lower", "1"),
            file("to-folder", "1"),
            file("/absolute/x", "1"),
            hard("d/twin", "d/a"),
            entry("dev/null", b'3', "", b""),
            entry("fifo", b'6', "", b""),
        ])
        .layer(&[
            file("d/a", "2"),
            file("d/.wh.b", ""),
            file(".wh.gone", ""),
            file("o/upper", "2"),
            file("o/.wh..wh..opq", ""),
            file("o/sub/upper", "2"),
            file(".wh..wh.plnk", ""),
            dir("to-folder"),
            file("to-folder/x", "2"),
            link("link", "d/a"),
            // What a layer brings itself it does not take away.
            file("own", "2"),
            file(".wh.own", ""),
        ]);
    bench.unpack().unwrap();
    assert_eq!(
        bench.shown(),
        [
            "absolute/",
            "absolute/x=1",
            "d/",
            "d/a=2",
            "d/twin=1",
            "dev/",
            "link -> d/a",
            "o/",
            "o/sub/",
            "o/sub/upper=2",
            "o/upper=2",
            "own=2",
            "to-folder/",
            "to-folder/x=2",
        ]
    );
}

#[test]
fn no_path_leads_out_of_the_folder() {
    let outside = |bench: &Bench| bench.folder.path().join("outside").display().to_string();
    for path in ["../outside/x", "a/../../outside/x", "a/..", "..", "/../x"] {
        let refused = Bench::new().layer(&[file(path, "x")]).refused();
        assert!(refused.contains("leads out of it"), "{refused}");
    }
    let bench = Bench::new();
    let target = outside(&bench);
    for target in [target.as_str(), "../outside", "."] {
        // A link that later entries, of this layer or another one, go through.
        let through = [file("l/x", "x"), dir("l/x"), link("l/x", "y"), hard("l/x", "f")];
        for last in through {
            let refused =
                Bench::new().layer(&[file("f", "f"), link("l", target), last.clone()]).refused();
            assert!(refused.contains("below a link"), "{refused}");
            let refused = Bench::new()
                .layer(&[file("f", "f"), link("l", target)])
                .layer(std::slice::from_ref(&last))
                .refused();
            assert!(refused.contains("below a link"), "{refused}");
        }
        // Whiteouts through it find nothing, and the link itself is what goes.
        let bench = Bench::new().layer(&[link("l", target), link("m", target)]).layer(&[
            file("l/.wh.secret", ""),
            file("l/.wh..wh..opq", ""),
            file(".wh.m", ""),
        ]);
        bench.unpack().unwrap();
        assert_eq!(bench.shown(), [format!("l -> {target}")]);
        // A file takes the link's place, and is not written through it.
        let bench = Bench::new().layer(&[link("l", &format!("{target}/secret")), file("l", "x")]);
        bench.unpack().unwrap();
        assert_eq!(bench.shown(), ["l=x"]);
    }
}

#[test]
fn a_hard_link_shares_only_files_of_the_image() {
    let bench = Bench::new();
    let secret = bench.folder.path().join("outside/secret").display().to_string();
    for target in [secret.as_str(), "../outside/secret", "none", "d", "l", "d/../../x", "h", ""] {
        let entries = [dir("d"), link("l", &secret), hard("h", target)];
        assert!(Bench::new().layer(&entries).unpack().is_err(), "{target}");
    }
    // Writing to one name of a file must not change the other, which a lower layer has.
    let bench = Bench::new().layer(&[file("a", "1"), hard("b", "a")]).layer(&[file("b", "2")]);
    bench.unpack().unwrap();
    assert_eq!(bench.shown(), ["a=1", "b=2"]);
}

#[test]
fn what_an_image_may_cost_has_limits() {
    let many: Vec<_> = (0..51).map(|n| dir(&format!("d{n}"))).collect();
    let long: Vec<_> = (0..45).map(|n| dir(&format!("{n}{}", "x".repeat(96)))).collect();
    let deep = "d/".repeat(DEPTH_MAX + 1);
    let hidden: Vec<_> = (0..30).map(|n| file(&format!("f{n}"), "")).collect();
    let opaque: Vec<_> = (0..5).map(|_| file(".wh..wh..opq", "")).collect();
    let again: Vec<_> = hidden.iter().cloned().chain(opaque).collect();
    let few_bytes = Limits { bytes: 4096, ..LIMITS };
    let cases = [
        (SMALL, Bench::new().layer(&many), "more files"),
        (SMALL, Bench::new().layer(&long), "more files"),
        (
            SMALL,
            Bench::new().layer(&[entry("long", b'L', "", deep.as_bytes()), dir("d")]),
            "too long",
        ),
        (few_bytes, Bench::new().title("f", "").layer(&[file("f", &"x".repeat(4000))]), "archive"),
        (SMALL, Bench::new().title(&"n".repeat(256), ""), "too long"),
        (SMALL, Bench::new().layer(&[link("l", "")]), "leads to no path"),
        // Bytes that are skipped, not written.
        (few_bytes, Bench::new().layer(&[file(".wh..wh.x", &"x".repeat(8000))]), "archive"),
        (
            Limits { entries: 500, ..SMALL },
            Bench::new().layer(&hidden[..5]).layer(&again[25..]).layer(&again),
            "takes more files away",
        ),
    ];
    for (limits, bench, wanted) in cases {
        let error = bench.unpack_within(limits).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        assert!(error.to_string().contains(wanted), "{error}");
    }
}

/// Goal: layers that hold nothing but what is skipped end as well. Method: more of them than a volume may
/// have bytes, each of which alone would do.
#[test]
fn what_is_skipped_counts_over_all_layers() {
    let skipped = [file(".wh..wh.x", &"x".repeat(1 << 20))];
    let limits = Limits { bytes: 2 << 20, ..LIMITS };
    let few = (0..3).fold(Bench::new(), |bench, _| bench.layer(&skipped));
    few.unpack_within(limits).unwrap();
    let many = (0..70).fold(Bench::new(), |bench, _| bench.layer(&skipped));
    let error = many.unpack_within(limits).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(error.to_string().contains("larger than a volume"), "{error}");
}

#[test]
fn a_bomb_stops_at_its_limit() {
    let bench = Bench::new();
    let layer = bench.folder.path().join("bomb");
    // 64 MiB of zeros in some 64 KiB.
    let mut tar = entry("zeros", b'0', "", &vec![0; 64 << 20]);
    tar.resize(tar.len() + 1024, 0);
    let plain = bench.folder.path().join("plain");
    fs::write(&plain, tar).unwrap();
    let made = std::process::Command::new("gzip").arg("-c").arg(&plain).output().unwrap();
    fs::write(&layer, made.stdout).unwrap();
    assert!(fs::metadata(&layer).unwrap().len() < 1 << 20);
    let limits = Limits { bytes: 1 << 20, ..LIMITS };
    let done =
        unpack(&[(layer.clone(), Form::Archive)], &bench.root(), limits, &CancellationToken::new());
    assert_eq!(done.unwrap_err().kind(), io::ErrorKind::InvalidData);
    assert!(fs::metadata(bench.root().join("zeros")).unwrap().len() <= 1 << 20);
    // As it is allowed, it is unpacked.
    fs::remove_dir_all(bench.root()).unwrap();
    let done = unpack(&[(layer, Form::Archive)], &bench.root(), LIMITS, &CancellationToken::new());
    assert_eq!(done.unwrap(), 64 << 20);
}

#[test]
fn a_layer_compressed_with_zstd_is_unpacked() {
    let bench = Bench::new();
    let layer = bench.folder.path().join("zstd");
    let mut tar = entry("file", b'0', "", b"content");
    tar.resize(tar.len() + 1024, 0);
    let level = ruzstd::encoding::CompressionLevel::Fastest;
    fs::write(&layer, ruzstd::encoding::compress_to_vec(tar.as_slice(), level)).unwrap();
    let done = unpack(&[(layer, Form::Archive)], &bench.root(), LIMITS, &CancellationToken::new());
    assert_eq!(done.unwrap(), 7);
    assert_eq!(fs::read(bench.root().join("file")).unwrap(), b"content");
}

#[test]
fn artifacts_are_files_by_their_title() {
    let bench = Bench::new().title("model.bin", "weights").title("docs/readme", "text");
    bench.unpack().unwrap();
    assert_eq!(bench.shown(), ["docs/", "docs/readme=text", "model.bin=weights"]);
    let ino = |path: &Path| fs::metadata(path).unwrap().ino();
    assert_eq!(ino(&bench.layers[0].0), ino(&bench.root().join("model.bin")), "not there twice");
    for title in ["../x", "/etc/x", "a/../../x", ".", ""] {
        assert!(Bench::new().title(title, "x").unpack().is_err(), "{title}");
    }
    let bench = Bench::new().layer(&[link("l", "../outside")]).title("l/secret", "x");
    assert!(bench.refused().contains("below a link"));
}

#[test]
fn cancelled_work_ends() {
    let bench = Bench::new().layer(&[file("a", "1")]);
    let cancel = CancellationToken::new();
    cancel.cancel();
    let done = unpack(&bench.layers, &bench.root(), LIMITS, &cancel);
    assert_eq!(done.unwrap_err().kind(), io::ErrorKind::Interrupted);
}

#[test]
fn damaged_layers_are_refused() {
    let whole = file("a", &"x".repeat(1000));
    for bytes in
        [whole[..700].to_vec(), b"no archive at all".repeat(50), [&GZIP_MAGIC[..], b"x"].concat()]
    {
        assert!(!Bench::new().layer(&[bytes]).refused().is_empty());
    }
}
