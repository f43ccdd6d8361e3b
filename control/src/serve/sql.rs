//! The store: SQLite, one table for each kind of row, one writer.
//!
//! A row is written as it serializes: a column for each field. Lists and objects are JSON texts. The SQL is what SQLite
//! and PostgreSQL both understand. What one commit holds is there wholly or not at all, on disk when it returns.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{collections::BTreeMap, fs, io, path::Path, sync::LazyLock};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Row, Sqlite, SqliteConnection,
    query::Query,
    sqlite::{SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqliteRow, SqliteSynchronous},
};

use transports::private;

use crate::{
    limits,
    store::{Mutation, Rows, Sequence},
};

/// The layout of the tables. A store with a higher number was written by a later program.
const SCHEMA: i64 = 1;

/// Pages of 4 KiB in the log beside the file, after which it is emptied into the file; SQLite: 1,000. A log that fills the
/// disk cannot be emptied any more.
const LOG_PAGES: u32 = 64;

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    /// The file cannot be opened or made.
    #[error(transparent)]
    File(#[from] io::Error),
    /// The database says no.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
    /// It holds what this program did not write.
    #[error("a row of table {table} is not as it should be: {why}")]
    Row {
        /// Of which table.
        table: &'static str,
        /// What is wrong.
        why: serde_json::Error,
    },
    /// Pages of it are damaged, there is nothing in it, or its log is left alone.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// It was written by a later program.
    #[error("the store has layout {0}, and this program knows layouts up to {SCHEMA}")]
    Newer(i64),
}

impl StoreError {
    /// Whether there would be none with more room.
    pub(super) fn is_full(&self) -> bool {
        match self {
            Self::File(error) => private::is_full(error),
            // SQLITE_FULL, and SQLITE_IOERR_SHMSIZE: no room for what is shared beside the file.
            Self::Sql(error) => {
                let code = error.as_database_error().and_then(|error| error.code());
                code.is_some_and(|code| matches!(&*code, "13" | "4874"))
            }
            Self::Row { .. } | Self::Damaged(_) | Self::Newer(_) => false,
        }
    }
}

/// An open store.
pub(super) struct SqlStore {
    connection: SqliteConnection,
}

impl SqlStore {
    /// Opens the database, or makes one that only its owner may read.
    pub(super) async fn open(path: &Path) -> Result<Self, StoreError> {
        match fs::metadata(path) {
            // Made elsewhere and renamed, so that an empty file is never one of ours.
            Err(error) if error.kind() == io::ErrorKind::NotFound => make(path).await?,
            Err(error) => return Err(error.into()),
            Ok(found) if found.is_dir() => return Err(io::Error::from(io::ErrorKind::IsADirectory).into()),
            Ok(found) if found.len() == 0 => return Err(StoreError::Damaged("it is empty".to_owned())),
            // Whether it can be written is known before anybody is answered.
            Ok(_) => drop(fs::OpenOptions::new().append(true).open(path)?),
        }
        let mut connection = options(path)
            .journal_mode(SqliteJournalMode::Wal)
            // What was answered survives a power cut too.
            .synchronous(SqliteSynchronous::Full)
            .pragma("wal_autocheckpoint", LOG_PAGES.to_string())
            .connect()
            .await?;
        // Of damage the first is enough.
        let check: String = query("PRAGMA quick_check(1)").fetch_one(&mut connection).await?.try_get(0)?;
        if check != "ok" {
            return Err(StoreError::Damaged(check.replace('\n', " ")));
        }
        let mut store = Self { connection };
        match store.schema().await? {
            None => return Err(StoreError::Damaged("its layout is not said".to_owned())),
            Some(newer) if newer > SCHEMA => return Err(StoreError::Newer(newer)),
            Some(_) => {}
        }
        Ok(store)
    }

    async fn schema(&mut self) -> Result<Option<i64>, StoreError> {
        let rows: Vec<SequenceRow> = self.rows(SEQUENCES).await?;
        Ok(rows.iter().find(|row| row.name == SCHEMA_ROW).map(|row| row.next))
    }

    /// Everything but the record of who changed what.
    pub(super) async fn load(&mut self) -> Result<Rows, StoreError> {
        let users: Vec<crate::store::UserRow> = self.rows(USERS).await?;
        let nodes: Vec<crate::store::NodeRow> = self.rows(NODES).await?;
        let keys: Vec<crate::store::KeyRow> = self.rows(KEYS).await?;
        let policies: Vec<crate::store::PolicyRow> = self.rows(POLICIES).await?;
        let sequences: Vec<SequenceRow> = self.rows(SEQUENCES).await?;
        let next = |sequence: Sequence| {
            let row = sequences.iter().find(|row| row.name == sequence.name());
            row.map(|row| (sequence, row.next))
        };
        Ok(Rows {
            users: users.into_iter().map(|row| (row.id, row)).collect(),
            nodes: nodes.into_iter().map(|row| (row.id, row)).collect(),
            keys: keys.into_iter().map(|row| (row.id.clone(), row)).collect(),
            policy: policies.into_iter().next(),
            next: [Sequence::Users, Sequence::Nodes].into_iter().filter_map(next).collect::<BTreeMap<_, _>>(),
            audit: Vec::new(),
        })
    }

    /// The record of who changed what, oldest first.
    #[cfg(test)]
    pub(super) async fn audit(&mut self) -> Result<Vec<crate::store::AuditRow>, StoreError> {
        self.rows(AUDIT).await
    }

    async fn rows<T: DeserializeOwned>(&mut self, table: Table) -> Result<Vec<T>, StoreError> {
        let rows = query(&table.select()).fetch_all(&mut self.connection).await?;
        let read = |row: &SqliteRow| {
            let object = table.object(row)?;
            serde_json::from_value(Value::Object(object)).map_err(|why| StoreError::Row { table: table.name, why })
        };
        rows.iter().map(read).collect()
    }

    /// Carries out mutations: all of them are on disk when this returns, or none is.
    pub(super) async fn commit(&mut self, mutations: &[Mutation]) -> Result<(), StoreError> {
        match self.try_commit(mutations).await {
            // What is in the log beside the file may fit into the file. Where it does not, the first error says more.
            Err(error) if error.is_full() => {
                let emptied = run(&mut self.connection, query("PRAGMA wal_checkpoint(TRUNCATE)")).await;
                if emptied.is_ok() { self.try_commit(mutations).await } else { Err(error) }
            }
            ended => ended,
        }
    }

    /// The transaction is ours, not sqlx's: of one that SQLite has rolled back by itself, as where the disk is full, sqlx
    /// goes on counting, and makes the next ones parts of a transaction that nobody ends.
    async fn try_commit(&mut self, mutations: &[Mutation]) -> Result<(), StoreError> {
        run(&mut self.connection, query("BEGIN IMMEDIATE")).await?;
        let result = self.put(mutations).await;
        if result.is_err() {
            // Where SQLite has done so by itself there is nothing to roll back.
            let _ = run(&mut self.connection, query("ROLLBACK")).await;
        }
        result
    }

    async fn put(&mut self, mutations: &[Mutation]) -> Result<(), StoreError> {
        for mutation in mutations {
            let statement = match mutation {
                Mutation::PutUser(row) => USERS.put(&value(USERS, row)?),
                Mutation::DeleteUser(id) => USERS.delete(Value::from(id.0)),
                Mutation::PutNode(row) => NODES.put(&value(NODES, row)?),
                Mutation::DeleteNode(id) => NODES.delete(Value::from(id.0)),
                Mutation::PutKey(row) => KEYS.put(&value(KEYS, row)?),
                Mutation::DeleteKey(id) => KEYS.delete(Value::from(id.as_str())),
                Mutation::PutPolicy(row) => POLICIES.put(&value(POLICIES, row)?),
                Mutation::PutNext(sequence, next) => {
                    SEQUENCES.put(&serde_json::json!({ "name": sequence.name(), "next": next }))
                }
                Mutation::Audit(row) => AUDIT.put(&value(AUDIT, row)?),
            };
            run(&mut self.connection, statement).await?;
        }
        if mutations.iter().any(|mutation| matches!(mutation, Mutation::Audit(_))) {
            run(&mut self.connection, AUDIT.keep_newest(limits::AUDIT_ROWS)).await?;
        }
        Ok(run(&mut self.connection, query("COMMIT")).await?)
    }

    /// Closes the database; what is beside the file goes into it.
    pub(super) async fn close(self) -> Result<(), StoreError> {
        Ok(self.connection.close().await?)
    }
}

/// Makes a database with empty tables.
async fn make(path: &Path) -> Result<(), StoreError> {
    // SQLite would take the log of the database that was here for that of the new one, and bring back what was in it.
    for ending in ["-wal", "-journal"] {
        let mut log = path.as_os_str().to_owned();
        log.push(ending);
        if Path::new(&log).exists() {
            return Err(StoreError::Damaged(format!("it is gone, and its log {} is there", log.display())));
        }
    }
    // SQLite gives the files beside it the rights of this one.
    let (fresh, _) = private::make_beside(path)?;
    let mut connection = options(&fresh).connect().await?;
    let mut transaction = connection.begin().await?;
    for table in TABLES {
        run(&mut transaction, query(&table.create())).await?;
    }
    let row = serde_json::json!({ "name": SCHEMA_ROW, "next": SCHEMA });
    run(&mut transaction, SEQUENCES.put(&row)).await?;
    transaction.commit().await?;
    connection.close().await?;
    Ok(fs::rename(&fresh, path)?)
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new().filename(path).disable_statement_logging()
}

fn value(table: Table, row: &impl Serialize) -> Result<Value, StoreError> {
    serde_json::to_value(row).map_err(|why| StoreError::Row { table: table.name, why })
}

/// Times are nanoseconds, which fit until the year 2262: what is later is then.
fn integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_u64().map(|_| i64::MAX))
}

type Statement = Query<'static, Sqlite, SqliteArguments>;

/// All texts are made here, of names that are written below.
fn query(text: &str) -> Statement {
    sqlx::query(AssertSqlSafe(text.to_owned()))
}

async fn run(connection: &mut SqliteConnection, statement: Statement) -> Result<(), sqlx::Error> {
    statement.execute(&mut *connection).await.map(drop)
}

/// In the table of sequences, the layout of the tables.
const SCHEMA_ROW: &str = "schema";

#[derive(serde::Deserialize)]
struct SequenceRow {
    name: String,
    next: i64,
}

/// What a column holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Integer,
    Text,
    Boolean,
    /// A JSON text.
    Json,
}

/// A table: its name and its columns, the first of which tells rows apart.
#[derive(Clone, Copy)]
struct Table {
    name: &'static str,
    columns: &'static [(&'static str, Kind)],
    /// Rows have no name: each put adds one, with a number in place of it; or there is one row only.
    numbered: Numbered,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Numbered {
    No,
    /// There is one row.
    One,
    /// One after the other.
    Each,
}

use Kind::{Boolean, Integer, Json, Text};

const USERS: Table = Table {
    name: "users",
    columns: &[
        ("id", Integer),
        ("stable_id", Text),
        ("login", Text),
        ("display_name", Text),
        ("role", Text),
        ("created", Integer),
    ],
    numbered: Numbered::No,
};

const NODES: Table = Table {
    name: "nodes",
    columns: &[
        ("id", Integer),
        ("stable_id", Text),
        ("machine", Text),
        ("key", Text),
        ("nl_key", Text),
        ("disco", Text),
        ("user", Integer),
        ("tags", Json),
        ("name", Text),
        ("name_is_fixed", Boolean),
        ("ipv4", Text),
        ("ipv6", Text),
        ("created", Integer),
        ("key_expiry", Integer),
        ("ephemeral", Boolean),
        ("auth_key", Text),
        ("approved_routes", Json),
        ("hostinfo", Json),
        ("cap", Integer),
        ("last_seen", Integer),
        ("announced", Boolean),
    ],
    numbered: Numbered::No,
};

const KEYS: Table = Table {
    name: "auth_keys",
    columns: &[
        ("id", Text),
        ("hash", Text),
        ("user", Integer),
        ("reusable", Boolean),
        ("ephemeral", Boolean),
        ("tags", Json),
        ("created", Integer),
        ("expires", Integer),
        ("revoked", Integer),
        ("uses", Integer),
    ],
    numbered: Numbered::No,
};

const POLICIES: Table =
    Table { name: "policies", columns: &[("text", Text), ("stored", Integer)], numbered: Numbered::One };

const SEQUENCES: Table =
    Table { name: "sequences", columns: &[("name", Text), ("next", Integer)], numbered: Numbered::No };

const AUDIT: Table = Table {
    name: "audit",
    columns: &[("at", Integer), ("actor", Json), ("action", Text), ("target", Text), ("before", Json), ("after", Json)],
    numbered: Numbered::Each,
};

const TABLES: [Table; 6] = [USERS, NODES, KEYS, POLICIES, SEQUENCES, AUDIT];

/// Texts of statements that put rows are made once.
static PUTS: LazyLock<BTreeMap<&'static str, String>> =
    LazyLock::new(|| TABLES.iter().map(|table| (table.name, table.put_text())).collect());

impl Table {
    fn create(&self) -> String {
        let kind = |kind| match kind {
            Integer => "BIGINT",
            Text | Json => "TEXT",
            Boolean => "BOOLEAN",
        };
        let mut columns: Vec<String> =
            self.columns.iter().map(|(name, of)| format!("\"{name}\" {}", kind(*of))).collect();
        match self.numbered {
            Numbered::No => {
                if let Some(first) = columns.first_mut() {
                    *first += " PRIMARY KEY NOT NULL";
                }
            }
            Numbered::One | Numbered::Each => columns.insert(0, "\"number\" BIGINT PRIMARY KEY NOT NULL".to_owned()),
        }
        format!("CREATE TABLE IF NOT EXISTS \"{}\" ({})", self.name, columns.join(", "))
    }

    fn names(&self) -> Vec<String> {
        self.columns.iter().map(|(name, _)| format!("\"{name}\"")).collect()
    }

    fn select(&self) -> String {
        let order = if self.numbered == Numbered::No { &self.columns[0].0 } else { &"number" };
        format!("SELECT {} FROM \"{}\" ORDER BY \"{order}\"", self.names().join(", "), self.name)
    }

    fn put_text(&self) -> String {
        let mut names = self.names();
        let mut values: Vec<String> = (1..=names.len()).map(|number| format!("${number}")).collect();
        let key = match self.numbered {
            Numbered::No => names[0].clone(),
            Numbered::One | Numbered::Each => "\"number\"".to_owned(),
        };
        let update: Vec<String> =
            names.iter().filter(|name| **name != key).map(|name| format!("{name} = excluded.{name}")).collect();
        match self.numbered {
            Numbered::No => {}
            Numbered::One => values.insert(0, "1".to_owned()),
            Numbered::Each => {
                values.insert(0, format!("(SELECT COALESCE(MAX(\"number\"), 0) + 1 FROM \"{}\")", self.name));
            }
        }
        if self.numbered != Numbered::No {
            names.insert(0, key.clone());
        }
        format!(
            "INSERT INTO \"{}\" ({}) VALUES ({}) ON CONFLICT ({key}) DO UPDATE SET {}",
            self.name,
            names.join(", "),
            values.join(", "),
            update.join(", ")
        )
    }

    /// Puts a row, given as its object.
    fn put(&self, row: &Value) -> Statement {
        let mut statement = query(PUTS.get(self.name).map_or("", String::as_str));
        for (name, kind) in self.columns {
            let value = row.get(name).unwrap_or(&Value::Null);
            statement = match kind {
                Integer => statement.bind(integer(value)),
                Boolean => statement.bind(value.as_bool()),
                Text => statement.bind(value.as_str().map(str::to_owned)),
                Json => statement.bind(value.to_string()),
            };
        }
        statement
    }

    /// Deletes all rows but so many, of a table whose rows are numbered each.
    fn keep_newest(&self, rows: i64) -> Statement {
        let text = "DELETE FROM \"{}\" WHERE \"number\" <= (SELECT MAX(\"number\") FROM \"{}\") - $1";
        query(&text.replace("{}", self.name)).bind(rows)
    }

    fn delete(&self, key: Value) -> Statement {
        let statement = query(&format!("DELETE FROM \"{}\" WHERE \"{}\" = $1", self.name, self.columns[0].0));
        match key {
            Value::String(text) => statement.bind(text),
            other => statement.bind(integer(&other)),
        }
    }

    /// A row as its object.
    fn object(&self, row: &SqliteRow) -> Result<Map<String, Value>, StoreError> {
        let mut object = Map::new();
        for (name, kind) in self.columns {
            let value = match kind {
                Integer => row.try_get::<Option<i64>, _>(name)?.into(),
                Boolean => row.try_get::<Option<bool>, _>(name)?.into(),
                Text => row.try_get::<Option<String>, _>(name)?.into(),
                Json => {
                    let text: String = row.try_get(name)?;
                    serde_json::from_str(&text).map_err(|why| StoreError::Row { table: self.name, why })?
                }
            };
            object.insert((*name).to_owned(), value);
        }
        Ok(object)
    }
}

#[cfg(test)]
mod tests;
