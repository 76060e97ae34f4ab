//! The power goes at any moment of the lease file's writes. What was synced is on the disk then; of what was not, any
//! part is: a beginning, single sectors, or nothing, and a new name or the old one.

use super::super::journal::{Journal, load};
use super::*;
use crate::ipam::Change;
use crate::ipam::store::recorder::{self, Op};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A disk writes so many bytes at once.
const SECTOR: usize = 512;

/// A file's content: what is on the disk for certain, and what is written.
#[derive(Clone, Default)]
struct Content {
    synced: Vec<u8>,
    now: Vec<u8>,
}

/// A directory on a disk. Files are numbered, since a name may become that of another one.
#[derive(Default)]
struct Disk {
    files: Vec<Content>,
    synced: BTreeMap<PathBuf, usize>,
    now: BTreeMap<PathBuf, usize>,
    /// The names after each change that was not synced.
    between: Vec<BTreeMap<PathBuf, usize>>,
}

impl Disk {
    fn play(&mut self, op: &Op) {
        match op {
            Op::Create(path) => {
                self.files.push(Content::default());
                self.now.insert(path.clone(), self.files.len() - 1);
                self.between.push(self.now.clone());
            }
            Op::Write(path, bytes) => self.files[self.now[path]].now.extend(bytes),
            Op::Sync(path) => {
                let file = &mut self.files[self.now[path]];
                file.synced.clone_from(&file.now);
            }
            Op::Rename(from, to) => {
                let file = self.now.remove(from).expect("it is there");
                self.now.insert(to.clone(), file);
                self.between.push(self.now.clone());
            }
            Op::SyncDir => {
                self.synced.clone_from(&self.now);
                self.between.clear();
            }
        }
    }

    /// All that may be in the file `path` when the power goes now; `None` for no file.
    fn after_a_cut(&self, path: &Path) -> Vec<Option<Vec<u8>>> {
        let names = std::iter::once(&self.synced).chain(&self.between);
        let files: std::collections::BTreeSet<Option<usize>> = names.map(|names| names.get(path).copied()).collect();
        let mut all = Vec::new();
        for file in files {
            match file {
                None => all.push(None),
                Some(file) => all.extend(torn(&self.files[file]).into_iter().map(Some)),
            }
        }
        all
    }
}

/// What may be on the disk of a file that is being written.
fn torn(Content { synced, now }: &Content) -> Vec<Vec<u8>> {
    let step = (now.len() - synced.len()).div_ceil(200).max(1);
    let mut all: Vec<Vec<u8>> = (synced.len()..now.len()).step_by(step).map(|len| now[..len].to_vec()).collect();
    all.push(now.clone());
    // The length may be there before the data: a sector that is missing is zero, and so are all but one.
    let first = synced.len() / SECTOR;
    for sector in first..now.len().div_ceil(SECTOR) {
        for is_missing in [true, false] {
            let mut image = now.clone();
            for (at, byte) in image.iter_mut().enumerate().skip(synced.len()) {
                if (at / SECTOR == sector) == is_missing {
                    *byte = 0;
                }
            }
            all.push(image);
        }
    }
    all
}

/// A lease that was answered is there, with no other address, and of one that was not all or nothing. The file can be
/// loaded each time, and written on.
#[test]
fn the_power_goes_at_any_moment() {
    let dir = dir();
    let path = dir.path().join("leases");
    let (mut journal, mut ipam) = (Journal::new(dir.path()), Ipam::default());
    // The leases after each write, and how much had been done to the file when it was answered.
    let mut answered = vec![(ipam.clone(), 0)];
    recorder::begin();
    for batch in 0..12_u8 {
        let mut changes = Vec::new();
        // Batches of one lease and of many; some end what earlier ones lent, and give the address to somebody else.
        for n in 0..[1, 30, 3][usize::from(batch % 3)] {
            let lease = client(batch * 16 + n % 16, &format!("10.3.{}.{n}", batch / 2));
            let before = ipam.clients().find(|other| other.address == lease.address && other.client != lease.client);
            if let Some(key) = before.map(|other| other.key()) {
                ipam.end(&key).expect("it is there");
                changes.push(Change::Ended(key));
            }
            ipam.lend(lease.clone()).expect("free");
            changes.push(Change::Lent(lease));
        }
        journal.commit(&changes, &ipam).expect("written");
        answered.push((ipam.clone(), recorder::so_far().len()));
        if batch % 5 == 4 {
            journal.write_anew(&ipam).expect("written");
            answered.push((ipam.clone(), recorder::so_far().len()));
        }
    }
    let ops = recorder::so_far();
    assert!(cut_everywhere(&path, &ops, &answered).expect("no lease is lost") > 1000);
    // And without any of what the file layer waits for, some are.
    for left_out in [
        |op: &Op| matches!(op, Op::Sync(path) if path.ends_with("leases")),
        |op: &Op| matches!(op, Op::Sync(path) if !path.ends_with("leases")),
        |op: &Op| matches!(op, Op::SyncDir),
    ] {
        // One that does not happen is still one that has been waited for.
        let others: Vec<Option<&Op>> = ops.iter().map(|op| Some(op).filter(|op| !left_out(op))).collect();
        assert!(others.iter().any(Option::is_none) && play(&path, &others, &answered).is_err());
    }
}

fn cut_everywhere(path: &Path, ops: &[Op], answered: &[(Ipam, usize)]) -> Result<usize, String> {
    play(path, &ops.iter().map(Some).collect::<Vec<_>>(), answered)
}

/// Cuts the power after each of `ops`. Returns how many images of the disk there were, or what was lost.
fn play(path: &Path, ops: &[Option<&Op>], answered: &[(Ipam, usize)]) -> Result<usize, String> {
    let (cut, mut disk, mut images) = (dir(), Disk::default(), 0);
    for (at, op) in ops.iter().enumerate() {
        op.iter().for_each(|op| disk.play(op));
        let known = answered.iter().rposition(|(_, done)| *done <= at + 1).expect("the first");
        for image in disk.after_a_cut(path) {
            let file = cut.path().join("leases");
            let _ = fs::remove_file(&file);
            if let Some(image) = &image {
                fs::write(&file, image).expect("written");
            }
            let (mut journal, mut found, conditions) = load(cut.path()).expect("loaded");
            let is_right = answered[known..].iter().take(2).any(|(ipam, _)| *ipam == found);
            if !is_right || !conditions.is_empty() {
                return Err(format!("after {at}, {op:?}: {conditions:?}"));
            }
            images += 1;
            // What is written after the start is not lost behind what was torn.
            if images % 16 == 0 {
                let more = client(255, "10.3.99.99");
                found.lend(more.clone()).expect("free");
                journal.commit(&[Change::Lent(more)], &found).expect("written");
                assert_eq!(load(cut.path()).expect("loaded").1, found);
            }
        }
    }
    Ok(images)
}
