//! Writes an initramfs: a cpio archive in the "newc" format
//! (`Documentation/driver-api/early-userspace/buffer-format.rst` of the kernel). It is not compressed, since in an
//! emulated machine decompression takes longer than reading.

use std::io::{self, Write};
use std::path::Path;

/// An archive that is being written.
pub struct Archive<W> {
    out: W,
    inode: u32,
}

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const LINK: u32 = 0o120_777;
const CHARACTERS: u32 = 0o020_600;
/// Alignment of entries, bytes.
const ALIGN: usize = 4;

impl<W: Write> Archive<W> {
    /// An empty archive.
    pub fn new(out: W) -> Self {
        Self { out, inode: 1 }
    }

    /// A directory; its parents must exist in the archive.
    pub fn folder(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, FOLDER, (0, 0), &[])
    }

    /// A file.
    pub fn file(&mut self, path: &str, data: &[u8]) -> io::Result<()> {
        self.entry(path, FILE, (0, 0), data)
    }

    /// A copy of a file, executable.
    pub fn program(&mut self, path: &str, from: &Path) -> io::Result<()> {
        self.entry(path, PROGRAM, (0, 0), &std::fs::read(from)?)
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, to: &str) -> io::Result<()> {
        self.entry(path, LINK, (0, 0), to.as_bytes())
    }

    /// A character device. Without `/dev/console` the first process has no output.
    pub fn characters(&mut self, path: &str, number: (u32, u32)) -> io::Result<()> {
        self.entry(path, CHARACTERS, number, &[])
    }

    /// Writes the end of the archive.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), data: &[u8]) -> io::Result<()> {
        let too_large = |_| io::Error::other(format!("{path}: too large for an initramfs"));
        let size = u32::try_from(data.len()).map_err(too_large)?;
        let name = u32::try_from(path.len() + 1).map_err(too_large)?;
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name, 0];
        self.inode += 1;
        let head = fields.iter().fold("070701".to_owned(), |head, field| format!("{head}{field:08X}"));
        let named = [head.as_bytes(), path.as_bytes(), &[0]].concat();
        self.padded(&named)?;
        self.padded(data)
    }

    fn padded(&mut self, data: &[u8]) -> io::Result<()> {
        self.out.write_all(data)?;
        self.out.write_all(&[0; ALIGN][..data.len().next_multiple_of(ALIGN) - data.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;

    #[test]
    fn an_entry_is_laid_out_as_the_kernel_reads_it() {
        let mut archive = Archive::new(Vec::new());
        archive.folder("a").expect("memory");
        archive.file("a/b", b"hello").expect("memory");
        let all = archive.finish().expect("memory");
        assert_eq!(all.len() % 4, 0);
        // Header 110, "a" and its zero 2: no padding.
        assert_eq!(&all[..14], b"07070100000001");
        assert_eq!(&all[110..112], b"a\0");
        let file = &all[112..];
        assert_eq!(&file[14..22], b"000081A4");
        assert_eq!(&file[54..62], b"00000005");
        assert_eq!(&file[94..102], b"00000004");
        // Header 110, name 4, padding 2.
        assert_eq!(&file[110..116], b"a/b\0\0\0");
        assert_eq!(&file[116..124], b"hello\0\0\0");
        assert!(all.windows(10).any(|w| w == b"TRAILER!!!"));
    }
}
