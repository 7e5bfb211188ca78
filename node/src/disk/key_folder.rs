//! A node's keys on disk: its master key in a file of its own, and one file for each tenant's data key, wrapped by the master key. A file
//! is made whole or not at all, and destroyed so that nothing of it can be read: overwritten, synced, deleted, and the folder synced.
//! Which keys there are to be is [`super::keyring`]'s.
//!
//! ```text
//!     0  magic "KVDATKEY"    12  tenant    24  mark of its secret    64  the key, encrypted    112  BLAKE3 of all before it
//!     8  version, 1          16  era       40  salt                  96  tag
//! ```

use super::DiskError;
use super::record::{TenantMark, field_of};
use super::seal::{DataKey, KEY_BYTES, Part, SALT_BYTES, TAG_BYTES, salt};
use kvhive_protocol::{Era, TenantId};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use tracing::{info, warn};
use zeroize::Zeroizing;

const MAGIC: [u8; 8] = *b"KVDATKEY";
const VERSION: u32 = 1;
const SALT_AT: usize = 40;
const KEY_AT: usize = SALT_AT + SALT_BYTES;
const TAG_AT: usize = KEY_AT + KEY_BYTES;
const SUM_AT: usize = TAG_AT + TAG_BYTES;
const FILE_BYTES: usize = SUM_AT + blake3::OUT_LEN;
/// How a data key's file is called.
const PREFIX: &str = "tenant-";
/// Says that the keys of a folder began under a master key that is named, and is elsewhere.
const BEGUN: &str = "begun";
/// What a file's name ends in until it is whole.
const UNFINISHED: &str = ".new";
/// The longest master key file: more is none.
const MAX_MASTER_BYTES: u64 = 1024;

/// Whose key it is: of blocks of this era, named by the secret of this mark.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct KeyName {
    pub(crate) tenant: TenantId,
    pub(crate) era: Era,
    pub(crate) mark: TenantMark,
}

/// What a change of a file is made of; a crash may come before each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Write,
    SyncWritten,
    Rename,
    SyncRenamed,
    Overwrite,
    SyncOverwritten,
    Delete,
    SyncDeleted,
}

/// The folder of a node's data keys.
pub(super) struct KeyFolder {
    folder: PathBuf,
    master: DataKey,
    /// The process ends before this step.
    #[cfg(test)]
    pub(super) ends_before: std::sync::Mutex<Option<Step>>,
    /// The disk hangs before this step: says so, and goes on when it is told.
    #[cfg(test)]
    pub(super) hangs_before: std::sync::Mutex<Option<Hang>>,
}

/// A step, who hears that it is reached, and who says that it is done.
#[cfg(test)]
pub(super) type Hang = (Step, std::sync::mpsc::Sender<()>, std::sync::mpsc::Receiver<()>);

impl KeyFolder {
    /// Reads the master key, makes one where there is none and nothing needs it, and reads all data keys. What is damaged, or was not
    /// finished, is destroyed. A master key that is `named` is one that an operator has a place for.
    pub(super) fn open(
        folder: &Path,
        master_file: &Path,
        is_named: bool,
    ) -> Result<(KeyFolder, Vec<(KeyName, DataKey)>), DiskError> {
        let failed = |source| DiskError::Io { path: folder.to_owned(), source };
        let files = key_files(folder).map_err(failed)?;
        let needs_it = if files.iter().any(|name| !name.ends_with(UNFINISHED)) {
            Some("the node's data keys were encrypted by it".to_owned())
        } else if is_named {
            may_not_be_made(folder, master_file)
        } else {
            None
        };
        let master = master_key(master_file, needs_it)?;
        if is_named && !folder.join(BEGUN).exists() {
            let begun = folder.join(BEGUN);
            let written = File::create(&begun).and_then(|file| file.sync_all());
            written.and_then(|()| sync_folder(folder)).map_err(failed)?;
        }
        let keys = KeyFolder {
            folder: folder.to_owned(),
            master,
            #[cfg(test)]
            ends_before: std::sync::Mutex::default(),
            #[cfg(test)]
            hangs_before: std::sync::Mutex::default(),
        };
        let mut found = Vec::with_capacity(files.len());
        let mut bad = Vec::new();
        for name in files {
            match keys.read(&name).map_err(failed)? {
                Some(Whole::Key(key_name, key)) => found.push((key_name, key)),
                Some(Whole::Strange(version)) => {
                    return Err(DiskError::Form {
                        path: folder.join(name),
                        form: format!("version {version}"),
                    });
                }
                Some(Whole::OfAnother) => {
                    let why = format!(
                        "it did not encrypt the keys in {}: give the node the file that it had, or delete that folder, and with it \
                         what the disk tier holds",
                        folder.display()
                    );
                    return Err(DiskError::MasterKey { path: master_file.to_owned(), why });
                }
                None => bad.push(name),
            }
        }
        if !bad.is_empty() {
            warn!(folder = %folder.display(), files = bad.len(), "data keys that are damaged or were not finished are destroyed");
            keys.destroy_files(&bad).map_err(failed)?;
        }
        Ok((keys, found))
    }

    pub(super) fn path(&self) -> &Path {
        &self.folder
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests end the process here")]
    fn before(&self, _: Step) -> io::Result<()> {
        Ok(())
    }

    #[cfg(test)]
    fn before(&self, step: Step) -> io::Result<()> {
        let hang = self.hangs_before.lock().expect("nobody panics here").take_if(|(at, ..)| *at == step);
        if let Some((_, reached, goes_on)) = hang {
            reached.send(()).expect("the test waits");
            goes_on.recv().expect("the test says so");
        }
        let ends = *self.ends_before.lock().expect("nobody panics here") == Some(step);
        if ends { Err(io::Error::other(format!("it ends before {step:?}"))) } else { Ok(()) }
    }

    /// Writes a key's file. When this returns, it is there after any crash.
    pub(super) fn create(&self, name: &KeyName, key: &DataKey) -> io::Result<()> {
        let file_name = file_name(name);
        let (unfinished, path) =
            (self.folder.join(format!("{file_name}{UNFINISHED}")), self.folder.join(file_name));
        let bytes = self.encode(name, key)?;
        self.before(Step::Write)?;
        let mut file =
            OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&unfinished)?;
        file.write_all(&bytes)?;
        self.before(Step::SyncWritten)?;
        file.sync_all()?;
        self.before(Step::Rename)?;
        fs::rename(&unfinished, &path)?;
        self.before(Step::SyncRenamed)?;
        sync_folder(&self.folder)
    }

    /// Destroys keys. When this returns, nothing that the file system gives has them; done again, does nothing.
    pub(super) fn destroy(&self, names: &[KeyName]) -> io::Result<()> {
        self.destroy_files(&names.iter().map(file_name).collect::<Vec<_>>())
    }

    fn destroy_files(&self, names: &[String]) -> io::Result<()> {
        destroy_files(&self.folder, names, &|step| self.before(step))
    }

    fn encode(&self, name: &KeyName, key: &DataKey) -> io::Result<[u8; FILE_BYTES]> {
        let mut out = [0; FILE_BYTES];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&name.tenant.0.to_le_bytes());
        out[16..24].copy_from_slice(&name.era.0.to_le_bytes());
        out[24..SALT_AT].copy_from_slice(&name.mark);
        let salt = salt()?;
        out[SALT_AT..KEY_AT].copy_from_slice(&salt);
        let mut wrapped = Zeroizing::new(*key.bytes());
        let tag = self.master.once(&salt).seal(Part::Key, &out[..KEY_AT], &mut wrapped[..])?;
        out[KEY_AT..TAG_AT].copy_from_slice(&wrapped[..]);
        out[TAG_AT..SUM_AT].copy_from_slice(&tag);
        let sum = blake3::hash(&out[..SUM_AT]);
        out[SUM_AT..].copy_from_slice(sum.as_bytes());
        Ok(out)
    }

    /// Reads a key's file; none when it is no whole one.
    fn read(&self, name: &str) -> io::Result<Option<Whole>> {
        if name.ends_with(UNFINISHED) {
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(FILE_BYTES + 1);
        File::open(self.folder.join(name))?.take(FILE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
        let Ok(bytes) = <[u8; FILE_BYTES]>::try_from(&bytes[..]) else { return Ok(None) };
        if bytes[0..8] != MAGIC || blake3::hash(&bytes[..SUM_AT]).as_bytes()[..] != bytes[SUM_AT..] {
            return Ok(None);
        }
        let version = u32::from_le_bytes(field(&bytes, 8));
        if version != VERSION {
            return Ok(Some(Whole::Strange(version)));
        }
        let key_name = KeyName {
            tenant: TenantId(u32::from_le_bytes(field(&bytes, 12))),
            era: Era(u64::from_le_bytes(field(&bytes, 16))),
            mark: field(&bytes, 24),
        };
        let mut key = Zeroizing::new(field(&bytes, KEY_AT));
        let once = self.master.once(&field(&bytes, SALT_AT));
        if !once.open(Part::Key, &bytes[..KEY_AT], &mut key[..], &field(&bytes, TAG_AT)) {
            return Ok(Some(Whole::OfAnother));
        }
        // One that was given another's name is nobody's.
        let is_own = file_name(&key_name) == name;
        Ok(is_own.then(|| Whole::Key(key_name, DataKey::of(*key))))
    }
}

/// Makes the folder of data keys, for the node's user alone.
pub(super) fn make_folder(folder: &Path) -> Result<(), DiskError> {
    let beside = folder.parent().map_or(Ok(()), fs::create_dir_all);
    let made = beside.and_then(|()| DirBuilder::new().recursive(true).mode(0o700).create(folder));
    made.map_err(|source| DiskError::Io { path: folder.to_owned(), source })
}

/// Destroys every data key of a folder.
pub(super) fn destroy_all(folder: &Path) -> io::Result<()> {
    destroy_files(folder, &key_files(folder)?, &|_| Ok(()))
}

fn key_files(folder: &Path) -> io::Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        files.extend(name.to_str().filter(|name| name.starts_with(PREFIX)).map(str::to_owned));
    }
    Ok(files)
}

/// Destroys as many as it can; fails with the first that it cannot.
fn destroy_files(folder: &Path, names: &[String], before: &dyn Fn(Step) -> io::Result<()>) -> io::Result<()> {
    let mut outcome = Ok(());
    for name in names {
        outcome = outcome.and(destroy_file(&folder.join(name), before));
    }
    let synced = before(Step::SyncDeleted).and_then(|()| sync_folder(folder));
    outcome.and(synced)
}

fn destroy_file(path: &Path, before: &dyn Fn(Step) -> io::Result<()>) -> io::Result<()> {
    let file = match OpenOptions::new().write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    before(Step::Overwrite)?;
    // In place: what is overwritten are the blocks that the key is in, as far as the file system has it so.
    file.write_all_at(&[0; FILE_BYTES], 0)?;
    before(Step::SyncOverwritten)?;
    file.sync_all()?;
    before(Step::Delete)?;
    fs::remove_file(path)
}

/// What a whole file has.
enum Whole {
    Key(KeyName, DataKey),
    /// The master key did not make it.
    OfAnother,
    /// It is of a version that is not known here.
    Strange(u32),
}

fn file_name(name: &KeyName) -> String {
    let mark: String = name.mark.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("{PREFIX}{}-{}-{mark}", name.tenant.0, name.era.0)
}

fn field<const N: usize>(bytes: &[u8; FILE_BYTES], at: usize) -> [u8; N] {
    field_of(bytes, at)
}

pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Says why a master key that is named and not there is not made. Where it is to be may be a mount that is late: a second key would be made
/// below it, and nothing that is encrypted by that be read when the first is there again.
fn may_not_be_made(folder: &Path, master_file: &Path) -> Option<String> {
    if folder.join(BEGUN).exists() {
        return Some(format!("it was when the keys in {} began", folder.display()));
    }
    let place = folder_of(master_file);
    let is_empty = fs::read_dir(place).map_or(true, |mut entries| entries.next().is_none());
    is_empty.then(|| {
        format!(
            "{} is empty or not there, as the place of a mount is before that is there; for a new key put one there \
             (`openssl rand -hex 32`, its owner's alone)",
            place.display()
        )
    })
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Reads the master key: 64 hexadecimal digits. Makes it where there is none, unless something says why not.
fn master_key(path: &Path, why_not: Option<String>) -> Result<DataKey, DiskError> {
    let failed = |source| DiskError::Io { path: path.to_owned(), source };
    let wrong = |why: &str| DiskError::MasterKey { path: path.to_owned(), why: why.to_owned() };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => match why_not {
            Some(why) => return Err(wrong(&format!("it is not there, and {why}"))),
            None => match make_master_key(path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    File::open(path).map_err(failed)?
                }
                made => return made.map_err(failed),
            },
        },
        Err(error) => return Err(failed(error)),
    };
    if file.metadata().map_err(failed)?.mode() & 0o007 != 0 {
        return Err(wrong("everybody may use it; allowed is its owner's and its group's alone (chmod o=)"));
    }
    let mut text = Zeroizing::new(String::with_capacity(MAX_MASTER_BYTES as usize + 1));
    file.take(MAX_MASTER_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    parse_key(text.trim()).ok_or_else(|| wrong("it is not 64 hexadecimal digits"))
}

fn parse_key(text: &str) -> Option<DataKey> {
    let digits = text.as_bytes();
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    if digits.len() != 2 * KEY_BYTES {
        return None;
    }
    for (byte, two) in key.iter_mut().zip(digits.chunks(2)) {
        let digit = |at: usize| char::from(two[at]).to_digit(16);
        *byte = (digit(0)? * 16 + digit(1)?) as u8;
    }
    Some(DataKey::of(*key))
}

fn make_master_key(path: &Path) -> io::Result<DataKey> {
    let key = DataKey::random()?;
    let mut text = Zeroizing::new(String::with_capacity(2 * KEY_BYTES + 1));
    for byte in key.bytes() {
        let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap_or('0');
        text.extend([digit(byte >> 4), digit(byte & 15)]);
    }
    text.push('\n');
    let folder = folder_of(path);
    fs::create_dir_all(folder)?;
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(format!(".{:016x}{UNFINISHED}", u64::from_le_bytes(field_of(&salt()?, 0))));
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&unfinished)?;
    let made = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        // Whole or not at all, and never over one that another node has made meanwhile.
        .and_then(|()| fs::hard_link(&unfinished, path));
    fs::remove_file(&unfinished)?;
    made?;
    sync_folder(folder)?;
    info!(file = %path.display(), "made the key that the disk tier's keys are encrypted by");
    Ok(key)
}
