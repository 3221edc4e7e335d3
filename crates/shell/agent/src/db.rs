//! The node's own record of its tasks.
//!
//! Owns: one small database file. Does not know: what is done with the records.
//! Invariant: a transaction is on disk before the call returns.

pub(crate) mod networks;

use std::path::{Path, PathBuf};

use prost::Message;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use types::TaskId;
use wire::agent_v1::{StoredNode, StoredTask};

/// Format of the records that this version writes and reads.
pub(crate) const FORMAT: u32 = 1;

const TASKS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("tasks");
const NODE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("node");
const NODE_KEY: &str = "node";

/// The database of one node's tasks.
pub struct TaskDb {
    db: Database,
    path: PathBuf,
}

/// The record cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// Another daemon has it open, the disk is full, or the file is damaged.
    #[error("database {path}")]
    Database {
        path: PathBuf,
        #[source]
        source: Box<redb::Error>,
    },
    /// Written by another version: run that one.
    #[error("database {path} has format {found}, this version reads {FORMAT}")]
    Format { path: PathBuf, found: u32 },
    /// Damaged: leave the cluster and join again.
    #[error("database {path} is damaged")]
    Damaged {
        path: PathBuf,
        #[source]
        source: prost::DecodeError,
    },
    /// It says what makes no sense to this version: remove the file; the networks in it are lost.
    #[error("database {path} makes no sense: {fault}")]
    Senseless { path: PathBuf, fault: types::Fault },
}

/// Everything that is written in one transaction.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub put: Vec<(TaskId, StoredTask)>,
    pub delete: Vec<TaskId>,
    pub node: Option<StoredNode>,
}

impl Batch {
    pub(crate) fn is_empty(&self) -> bool {
        self.put.is_empty() && self.delete.is_empty() && self.node.is_none()
    }
}

impl TaskDb {
    /// Opens the database, making it when it is not there.
    ///
    /// # Errors
    /// When the file cannot be opened or another daemon has it.
    pub fn open(path: &Path) -> Result<Self, DbError> {
        let failed = |source: redb::Error| DbError::Database {
            path: path.to_owned(),
            source: Box::new(source),
        };
        let db = Database::create(path).map_err(|error| failed(error.into()))?;
        Self::prepare(db, path)
    }

    /// A database that lives as long as this value, for simulation.
    ///
    /// # Errors
    /// Never in practice: memory does not fail.
    pub fn in_memory() -> Result<Self, DbError> {
        let path = Path::new("memory");
        let failed = |source: redb::Error| DbError::Database {
            path: path.to_owned(),
            source: Box::new(source),
        };
        let backend = redb::backends::InMemoryBackend::new();
        let db = Database::builder().create_with_backend(backend);
        Self::prepare(db.map_err(|error| failed(error.into()))?, path)
    }

    fn prepare(db: Database, path: &Path) -> Result<Self, DbError> {
        let failed = |source: redb::Error| DbError::Database {
            path: path.to_owned(),
            source: Box::new(source),
        };
        let create = || -> Result<(), redb::Error> {
            let write = db.begin_write()?;
            write.open_table(TASKS)?;
            write.open_table(NODE)?;
            write.commit()?;
            Ok(())
        };
        create().map_err(failed)?;
        Ok(Self { db, path: path.to_owned() })
    }

    fn failed(&self, source: redb::Error) -> DbError {
        DbError::Database { path: self.path.clone(), source: Box::new(source) }
    }

    /// All tasks, and the node's own record.
    pub(crate) fn load(&self) -> Result<(Vec<StoredTask>, StoredNode), DbError> {
        let (tasks, node) = self.load_bytes().map_err(|source| self.failed(source))?;
        let tasks = tasks
            .iter()
            .map(|bytes| {
                let task: StoredTask = self.decode(bytes)?;
                self.check(task.format)?;
                Ok(task)
            })
            .collect::<Result<_, DbError>>()?;
        let node = match node {
            None => StoredNode { format: FORMAT, ..StoredNode::default() },
            Some(bytes) => {
                let node: StoredNode = self.decode(&bytes)?;
                self.check(node.format)?;
                node
            }
        };
        Ok((tasks, node))
    }

    #[allow(clippy::type_complexity)]
    fn load_bytes(&self) -> Result<(Vec<Vec<u8>>, Option<Vec<u8>>), redb::Error> {
        let read = self.db.begin_read()?;
        let mut tasks = Vec::new();
        for entry in read.open_table(TASKS)?.iter()? {
            tasks.push(entry?.1.value().to_vec());
        }
        let node = read.open_table(NODE)?.get(NODE_KEY)?.map(|bytes| bytes.value().to_vec());
        Ok((tasks, node))
    }

    fn decode<M: Message + Default>(&self, bytes: &[u8]) -> Result<M, DbError> {
        M::decode(bytes).map_err(|source| DbError::Damaged { path: self.path.clone(), source })
    }

    fn check(&self, found: u32) -> Result<(), DbError> {
        match found == FORMAT {
            true => Ok(()),
            false => Err(DbError::Format { path: self.path.clone(), found }),
        }
    }

    /// Writes a batch; it is on disk when this returns.
    pub(crate) fn write(&self, batch: &Batch) -> Result<(), DbError> {
        let write = || -> Result<(), redb::Error> {
            let write = self.db.begin_write()?;
            {
                let mut tasks = write.open_table(TASKS)?;
                for (id, task) in &batch.put {
                    tasks.insert(id.to_bytes().as_slice(), task.encode_to_vec().as_slice())?;
                }
                for id in &batch.delete {
                    tasks.remove(id.to_bytes().as_slice())?;
                }
                if let Some(node) = &batch.node {
                    let mut nodes = write.open_table(NODE)?;
                    nodes.insert(NODE_KEY, node.encode_to_vec().as_slice())?;
                }
            }
            write.commit()?;
            Ok(())
        };
        write().map_err(|source| self.failed(source))
    }
}

#[cfg(test)]
mod recorded;
