//! What a volume takes.

use wasip3::filesystem::preopens::get_directories;
use wasip3::filesystem::types::{Descriptor, DescriptorFlags, ErrorCode, OpenFlags, PathFlags};
use wasip3::{spawn_local, wit_stream};

/// Names that are tried.
const NAMES_MAX: u32 = 100;
/// Bytes of one write.
const WRITE_BYTES: usize = 1000;

/// Prints how each way of taking space ends.
pub async fn fill() -> Result<(), String> {
    let mut folders = get_directories();
    let (folder, _) = if folders.is_empty() { Err("no folder") } else { Ok(folders.remove(0)) }?;
    let file = open(&folder, "file").await.map_err(|code| format!("open: {code:?}"))?;
    let mut written = 0;
    let at_end = loop {
        match write(&file, written).await {
            Ok(()) => written += WRITE_BYTES as u64,
            Err(code) => break code,
        }
    };
    println!("write: {at_end:?} after {written}");
    println!("append: {:?}", append(&file).await);
    println!("again: {:?}", write(&file, 0).await);
    println!("longer: {:?}", file.set_size(1 << 30).await);
    println!("shorter: {:?}", file.set_size(0).await);
    println!("far: {:?}", write(&file, 1 << 30).await);
    println!("append: {:?}", append(&file).await);
    let mut made = 0;
    let at_end = loop {
        let name = format!("name{made}");
        let result = match made % 3 {
            0 => open(&folder, &name).await.map(drop),
            1 => folder.create_directory_at(name).await,
            _ => folder.symlink_at("file".to_owned(), name).await,
        };
        match result {
            Ok(()) if made < NAMES_MAX => made += 1,
            other => break other,
        }
    };
    println!("names: {at_end:?} after {made}");
    println!("known: {:?}", open(&folder, "file").await.map(drop));
    if let Some((other, _)) = folders.first() {
        let moved = folder.rename_at("file".to_owned(), other, "file".to_owned()).await;
        println!("move: {moved:?}");
    }
    Ok(())
}

async fn open(folder: &Descriptor, name: &str) -> Result<Descriptor, ErrorCode> {
    let flags = DescriptorFlags::READ | DescriptorFlags::WRITE;
    folder.open_at(PathFlags::empty(), name.to_owned(), OpenFlags::CREATE, flags).await
}

async fn write(file: &Descriptor, at: u64) -> Result<(), ErrorCode> {
    let (mut bytes, reader) = wit_stream::new();
    let done = file.write_via_stream(reader, at);
    spawn_local(async move {
        let _unwritten = bytes.write_all(vec![1; WRITE_BYTES]).await;
    });
    done.await
}

async fn append(file: &Descriptor) -> Result<(), ErrorCode> {
    let (mut bytes, reader) = wit_stream::new();
    let done = file.append_via_stream(reader);
    spawn_local(async move {
        let _unwritten = bytes.write_all(vec![1; WRITE_BYTES]).await;
    });
    done.await
}
