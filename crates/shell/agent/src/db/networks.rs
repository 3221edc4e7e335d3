//! The node's own record of the networks that it has for itself.
//!
//! Owns: one small database file, which outlives memberships.
//! Does not know: what a network is in the kernel.
//! Invariant: a network is on disk before the call returns.

use std::path::{Path, PathBuf};

use prost::Message;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use types::{LocalNetwork, NetworkId};
use wire::agent_v1::StoredNetwork;

use super::{DbError, FORMAT};

const NETWORKS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("networks");

/// The database of one node's own networks.
#[derive(Debug)]
pub struct NetworkDb {
    db: Database,
    path: PathBuf,
}

impl NetworkDb {
    /// Opens the database, making it when it is not there.
    ///
    /// # Errors
    /// When the file cannot be opened or another daemon has it.
    pub fn open(path: &Path) -> Result<Self, DbError> {
        let failed = |error: redb::Error| DbError::Database {
            path: path.to_owned(),
            source: Box::new(error),
        };
        let db = Database::create(path).map_err(|error| failed(error.into()))?;
        let this = Self { db, path: path.to_owned() };
        let prepare = || -> Result<(), redb::Error> {
            let write = this.db.begin_write()?;
            write.open_table(NETWORKS)?;
            write.commit()?;
            Ok(())
        };
        prepare().map_err(failed)?;
        Ok(this)
    }

    /// All networks, in the order of their identities.
    ///
    /// # Errors
    /// When the file cannot be read, or another version wrote it.
    pub fn load(&self) -> Result<Vec<LocalNetwork>, DbError> {
        let read = || -> Result<Vec<Vec<u8>>, redb::Error> {
            let read = self.db.begin_read()?;
            let mut all = Vec::new();
            for entry in read.open_table(NETWORKS)?.iter()? {
                all.push(entry?.1.value().to_vec());
            }
            Ok(all)
        };
        let all = read().map_err(|source| self.failed(source))?;
        all.iter().map(|bytes| self.decode(bytes)).collect()
    }

    fn decode(&self, bytes: &[u8]) -> Result<LocalNetwork, DbError> {
        let path = || self.path.clone();
        let stored = StoredNetwork::decode(bytes)
            .map_err(|source| DbError::Damaged { path: path(), source })?;
        if stored.format != FORMAT {
            return Err(DbError::Format { path: path(), found: stored.format });
        }
        let network = stored.network.unwrap_or_default();
        network.try_into().map_err(|fault| DbError::Senseless { path: path(), fault })
    }

    /// Writes a network; it is on disk when this returns.
    ///
    /// # Errors
    /// When the disk is full or the file damaged.
    pub fn put(&self, network: &LocalNetwork) -> Result<(), DbError> {
        let stored = StoredNetwork { format: FORMAT, network: Some(network.into()) };
        self.write(network.id, Some(&stored.encode_to_vec()))
    }

    /// Removes one; what is not there is no error.
    ///
    /// # Errors
    /// As [`NetworkDb::put`].
    pub fn remove(&self, id: NetworkId) -> Result<(), DbError> {
        self.write(id, None)
    }

    fn write(&self, id: NetworkId, bytes: Option<&[u8]>) -> Result<(), DbError> {
        let write = || -> Result<(), redb::Error> {
            let write = self.db.begin_write()?;
            {
                let mut networks = write.open_table(NETWORKS)?;
                match bytes {
                    Some(bytes) => drop(networks.insert(id.to_bytes().as_slice(), bytes)?),
                    None => drop(networks.remove(id.to_bytes().as_slice())?),
                }
            }
            write.commit()?;
            Ok(())
        };
        write().map_err(|source| self.failed(source))
    }

    fn failed(&self, source: redb::Error) -> DbError {
        DbError::Database { path: self.path.clone(), source: Box::new(source) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_outlive_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("networks.db");
        let db = NetworkDb::open(&path).unwrap();
        assert!(NetworkDb::open(&path).is_err(), "one daemon has it");
        let network = LocalNetwork::predefined_bridge();
        db.put(&network).unwrap();
        drop(db);
        let db = NetworkDb::open(&path).unwrap();
        assert_eq!(db.load().unwrap(), std::slice::from_ref(&network));
        db.remove(network.id).unwrap();
        db.remove(network.id).unwrap();
        assert_eq!(db.load().unwrap(), []);
    }

    #[test]
    fn what_another_version_wrote_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let db = NetworkDb::open(&dir.path().join("networks.db")).unwrap();
        let network = LocalNetwork::predefined_bridge();
        let later = StoredNetwork { format: FORMAT + 1, network: Some((&network).into()) };
        db.write(network.id, Some(&later.encode_to_vec())).unwrap();
        let error = db.load().unwrap_err().to_string();
        assert!(error.contains("has format 2, this version reads 1"), "{error}");
        db.write(network.id, Some(&[0xff])).unwrap();
        assert!(matches!(db.load(), Err(DbError::Damaged { .. })));
        let empty = StoredNetwork { format: FORMAT, network: None };
        db.write(network.id, Some(&empty.encode_to_vec())).unwrap();
        assert!(matches!(db.load(), Err(DbError::Senseless { .. })));
    }
}
