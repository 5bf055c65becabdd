//! Which controller is talked to, and as whom: the contexts in this user's file, and what
//! the command line says beside them.

use std::path::PathBuf;

use fabric_trust::{
    address::Address,
    context::{Context, Contexts, VARIABLE},
};

use crate::error::{Failure, Result};

/// The contexts, and their file.
pub struct Known {
    /// The file.
    pub file: PathBuf,
    /// What is in it.
    pub contexts: Contexts,
}

impl Known {
    /// Reads them; there are none in a file that is not there.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or there is no place for it.
    pub fn read() -> Result<Self> {
        let file = Contexts::place().ok_or_else(|| {
            Failure::Input(format!(
                "there is no home directory; say where by {VARIABLE}"
            ))
        })?;
        let contexts = Contexts::read(&file)?;
        Ok(Self { file, contexts })
    }

    /// The one of that name.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn get(&self, name: &str) -> Result<&Context> {
        self.contexts.contexts.get(name).ok_or_else(|| {
            Failure::Input(format!(
                "there is no context {name:?} in {}; `fabctl context list` shows what there is",
                self.file.display()
            ))
        })
    }

    /// Writes them back.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn write(&self) -> Result<()> {
        Ok(self.contexts.write(&self.file)?)
    }
}

/// What to use, as the command line says: a server, a context, both, or neither.
///
/// # Errors
///
/// There is no such context, or none at all.
pub fn choose(server: Option<&str>, name: Option<&str>) -> Result<Context> {
    let server: Option<Address> = server.map(str::parse).transpose()?;
    if let Some(server @ Address::Unix(_)) = server {
        return Ok(Context {
            server,
            ca: String::new(),
            certificate: String::new(),
            key: String::new(),
        });
    }
    let known = Known::read()?;
    let name = name.unwrap_or(&known.contexts.current);
    if name.is_empty() {
        return Err(Failure::Input(format!(
            "there is no context in {}, so it is not known where the controller is and who we \
             are: import one that an administrator made (`fabctl context import FILE`); on the \
             controller's machine, --server unix:DATA_DIR/controller.sock needs none",
            known.file.display()
        )));
    }
    let mut context = known.get(name)?.clone();
    if let Some(server) = server {
        context.server = server;
    }
    Ok(context)
}
