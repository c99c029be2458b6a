//! The last words of a container: what it wrote to `terminationMessagePath`, or the end of its log.
//!
//! A guest sees a folder of its own at the path's parent: WASI gives folders, not files.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use edgeorc_runtime::{Exit, Mount, VolumeLimit};
use k8s_openapi::api::core::v1::Container;
use rustix::fs::{Mode, OFlags};

use crate::agent::dirs::{PodDir, remove_folder};

/// Kubernetes' default of `terminationMessagePath`.
const PATH_DEFAULT: &str = "/dev/termination-log";
/// Most bytes of the file that are read.
const FILE_BYTES_MAX: u64 = 4096;
/// Most that a guest can write into the folder.
const FOLDER_BYTES_MAX: u64 = 64 * 1024;
/// Most of a log that stands in for the file.
const LOG_BYTES_MAX: u64 = 2048;
const LOG_LINES_MAX: usize = 80;

/// Adds the folder to the mounts. Files and devices that are mounted into it stand in it: one folder of
/// the guest's is one folder of the host's. Files that may only be read have no last words beside them.
pub(super) fn add(dir: &PodDir, spec: &Container, mounts: &mut Vec<Mount>) -> io::Result<()> {
    let Some(own) = mount(dir, spec)? else { return Ok(()) };
    let Some(at) = mounts.iter().position(|other| other.guest_path == own.guest_path) else {
        mounts.push(own);
        return Ok(());
    };
    if mounts.get(at).is_some_and(|files| files.is_read_only) {
        return Ok(());
    }
    let files = mounts.swap_remove(at);
    for entry in std::fs::read_dir(&files.host_path)? {
        let entry = entry?;
        std::fs::rename(entry.path(), own.host_path.join(entry.file_name()))?;
    }
    mounts.push(own);
    Ok(())
}

/// The empty folder for a container's next run, unless a volume is mounted there or the path names none.
pub(super) fn mount(dir: &PodDir, spec: &Container) -> io::Result<Option<Mount>> {
    let Some((guest_path, _)) = split(spec) else { return Ok(None) };
    let host_path = dir.termination(&spec.name);
    remove_folder(&host_path)?;
    dir.make(&host_path)?;
    let limit = Some(VolumeLimit { root: host_path.clone(), bytes_max: FOLDER_BYTES_MAX });
    let guest_path = guest_path.to_owned();
    Ok(Some(Mount { host_path, pin: None, guest_path, is_read_only: false, limit }))
}

/// What the container `spec` said last; otherwise what the runtime says of its end.
pub(super) fn read(dir: &PodDir, spec: &Container, run: u32, exit: &Exit) -> String {
    let written = split(spec).and_then(|(_, file)| {
        let text = head(&dir.termination(&spec.name).join(file), FILE_BYTES_MAX).ok()?;
        (!text.is_empty()).then_some(text)
    });
    let falls_back = spec.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
    written
        .or_else(|| {
            let log = dir.log_file(&spec.name, run);
            let is_wanted = falls_back && exit.code != 0;
            let text = is_wanted.then(|| last_lines(&log).ok())??;
            (!text.is_empty()).then_some(text)
        })
        .unwrap_or_else(|| exit.message.clone())
}

/// Folder and file of the path; `None` where a volume of the container is, or for a path that
/// names no file below a folder.
fn split(spec: &Container) -> Option<(&str, &str)> {
    let path = spec.termination_message_path.as_deref().unwrap_or(PATH_DEFAULT);
    let (folder, file) = path.rsplit_once('/')?;
    let is_plain = !folder.is_empty() && !file.is_empty() && file != "." && file != "..";
    let is_mounted = |m: &k8s_openapi::api::core::v1::VolumeMount| {
        let mounted = m.mount_path.trim_end_matches('/');
        folder == mounted || folder.strip_prefix(mounted).is_some_and(|rest| rest.starts_with('/'))
    };
    let has_volume = spec.volume_mounts.iter().flatten().any(is_mounted);
    (is_plain && !has_volume).then_some((folder, file))
}

/// The beginning of a file that a guest wrote. A link would lead out of its folder, and a FIFO would
/// never end: neither is opened.
fn head(path: &Path, bytes_max: u64) -> io::Result<String> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC) | OFlags::RDONLY;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last lines of a log in the CRI format, without their stamps.
fn last_lines(path: &PathBuf) -> io::Result<String> {
    /// Room for the stamps of the lines that are shown.
    const STAMP_BYTES: u64 = 48;
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let read_max = LOG_BYTES_MAX + STAMP_BYTES * LOG_LINES_MAX as u64;
    file.seek(SeekFrom::Start(size.saturating_sub(read_max)))?;
    let mut bytes = Vec::new();
    file.take(read_max).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<&str> = text.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).collect();
    lines.drain(..lines.len().saturating_sub(LOG_LINES_MAX));
    let shown = lines.join("\n");
    let cut = shown.len().saturating_sub(usize::try_from(LOG_BYTES_MAX).unwrap_or(usize::MAX));
    let from = (cut..=shown.len()).find(|at| shown.is_char_boundary(*at)).unwrap_or(0);
    Ok(shown.get(from..).unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use edgeorc_runtime::ExitReason;
    use serde_json::json;

    use super::*;
    use crate::agent::dirs::Dirs;

    fn exit(code: i32) -> Exit {
        Exit { code, reason: ExitReason::Error, message: "trap".to_owned() }
    }

    fn spec(more: serde_json::Value) -> Container {
        let mut spec = json!({"name": "app"});
        json_patch::merge(&mut spec, &more);
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn the_file_comes_first_then_the_log_if_asked_for_then_the_runtime() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dirs::create(root.path().to_owned()).unwrap().pod("u");
        dir.create().unwrap();
        let plain = spec(json!({}));
        let falling = spec(json!({"terminationMessagePolicy": "FallbackToLogsOnError"}));
        let mount = mount(&dir, &plain).unwrap().unwrap();
        assert_eq!(mount.guest_path, "/dev");
        assert_eq!(read(&dir, &plain, 0, &exit(1)), "trap");
        dir.make(&dir.logs("app")).unwrap();
        let log: String =
            (0..200).map(|n| format!("2026-01-01T00:00:00Z stderr F line {n}\n")).collect();
        std::fs::write(dir.log_file("app", 0), log).unwrap();
        let fallen = read(&dir, &falling, 0, &exit(1));
        assert!(fallen.ends_with("line 198\nline 199") && fallen.lines().count() <= 80, "{fallen}");
        assert_eq!(read(&dir, &falling, 0, &exit(0)), "trap");
        assert_eq!(read(&dir, &plain, 0, &exit(1)), "trap");
        std::fs::write(mount.host_path.join("termination-log"), "x".repeat(5000)).unwrap();
        assert_eq!(read(&dir, &falling, 0, &exit(1)).len(), 4096);
        assert_eq!(super::mount(&dir, &plain).unwrap().map(|m| m.host_path), Some(mount.host_path));
        assert_eq!(read(&dir, &plain, 0, &exit(1)), "trap", "emptied for the next run");
    }

    /// Goal: what is mounted into `/dev` is seen there, beside the last words.
    #[test]
    fn files_of_the_same_folder_stand_beside_the_last_words() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dirs::create(root.path().to_owned()).unwrap().pod("u");
        dir.create().unwrap();
        let files = |is_read_only: bool| {
            let host_path = dir.files("app").join("0");
            dir.make(&host_path).unwrap();
            std::fs::write(host_path.join("zero"), "").unwrap();
            let guest_path = "/dev".to_owned();
            vec![Mount { host_path, pin: None, guest_path, is_read_only, limit: None }]
        };
        let mut mounts = files(false);
        add(&dir, &spec(json!({})), &mut mounts).unwrap();
        assert_eq!(mounts.len(), 1);
        assert!(mounts[0].host_path.join("zero").exists() && mounts[0].limit.is_some());
        std::fs::write(mounts[0].host_path.join("termination-log"), "last").unwrap();
        assert_eq!(read(&dir, &spec(json!({})), 0, &exit(1)), "last");
        let mut kept = files(true);
        add(&dir, &spec(json!({})), &mut kept).unwrap();
        assert!(kept.len() == 1 && kept[0].is_read_only && kept[0].host_path.join("zero").exists());
    }

    #[test]
    fn a_link_is_not_followed_and_a_volume_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dirs::create(root.path().to_owned()).unwrap().pod("u");
        dir.create().unwrap();
        let plain = spec(json!({}));
        let mount = mount(&dir, &plain).unwrap().unwrap();
        std::os::unix::fs::symlink("/etc/hostname", mount.host_path.join("termination-log"))
            .unwrap();
        assert_eq!(read(&dir, &plain, 0, &exit(1)), "trap");
        for path in ["/data/last", "/data/sub/last", "last", "/last"] {
            let mounted = spec(json!({"terminationMessagePath": path,
                "volumeMounts": [{"name": "v", "mountPath": "/data/"}]}));
            assert!(super::mount(&dir, &mounted).unwrap().is_none(), "{path}");
        }
    }
}
