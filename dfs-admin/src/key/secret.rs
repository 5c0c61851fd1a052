//! Where the secret of a key comes from: a file that is made or that is there, a passphrase from a file or a terminal.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use dfs_client::keys::{Secret, create_secret, read_secret};
use dfs_proto::meta::KeySource;
use dfs_proto::{Code, Failure};

use super::beside;

/// What a new key is made of.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
pub struct NewKey {
    /// A file with the key, of 32 random bytes: made if it is not there, else used as it is
    #[arg(long, value_name = "FILE", conflicts_with_all = ["passphrase", "passphrase_file"])]
    file: Option<PathBuf>,
    /// A passphrase, asked for on the terminal
    #[arg(long)]
    passphrase: bool,
    /// The passphrase is in this file
    #[arg(long, value_name = "FILE", requires = "passphrase")]
    passphrase_file: Option<PathBuf>,
}

impl NewKey {
    /// How the key is made of the secret.
    pub(super) fn source(&self) -> KeySource {
        if self.passphrase { KeySource::Passphrase } else { KeySource::KeyFile }
    }

    /// The file with the secret, if it is to be in one.
    pub(super) fn path(&self) -> Option<&Path> {
        self.file.as_deref().or(self.passphrase_file.as_deref())
    }

    /// A key file that is there already.
    pub(super) fn existing_file(&self) -> Option<&Path> {
        self.file.as_deref().filter(|path| path.symlink_metadata().is_ok())
    }

    /// The secret, if it can be had without asking for it or making it.
    pub(super) fn present(&self) -> Option<Secret> {
        self.path().and_then(|path| read_secret(path).ok())
    }

    /// The secret. A key file is made where it is missing, and durable then; a passphrase that is in no file is asked for.
    pub(super) async fn obtain(&self) -> Result<Secret> {
        if let Some(path) = self.existing_file().or(self.passphrase_file.as_deref()) {
            return Ok(read_secret(path)?);
        }
        if let Some(path) = &self.file {
            return Ok(create_secret(path)?);
        }
        let passphrase = ask("Passphrase: ", "--passphrase-file").await?;
        if ask("The same again: ", "--passphrase-file").await? != passphrase {
            bail!("the two passphrases are different: nothing was changed");
        }
        Ok(passphrase)
    }

    /// What is to be said of the secret when the server could not be told.
    pub(super) fn remains(&self) -> String {
        match &self.file {
            Some(path) => format!(" ({} has it, and is used when this is tried again)", path.display()),
            None => String::new(),
        }
    }
}

/// A passphrase from the terminal, not shown. `instead` is the option for who has no terminal.
pub(super) async fn ask(prompt: &'static str, instead: &'static str) -> Result<Secret, Failure> {
    beside(move || {
        // The text's buffer becomes the secret's, so that no copy stays.
        let asked = rpassword::prompt_password(prompt).map(|text| Secret::new(text.into_bytes()));
        asked.map_err(|error| {
            let message =
                format!("a passphrase cannot be asked for here ({error}): give it with {instead} FILE");
            Failure::new(Code::InputOutput, message)
        })
    })
    .await
}
