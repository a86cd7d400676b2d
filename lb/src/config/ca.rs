//! Certificates that those of backends must be signed by.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    RootCertStore,
    pki_types::{
        CertificateDer,
        pem::{self, PemObject},
    },
};
use serde::Serialize;

/// As they stood in their file when the config was read: a reload reads it anew.
#[derive(Clone, Debug, Serialize)]
pub struct Ca {
    file: PathBuf,
    #[serde(skip)]
    roots: Arc<RootCertStore>,
}

/// Why a file of certificates is of no use.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("cannot read the certificates in {}: {source}; on most systems those of public authorities are in \"/etc/ssl/certs/ca-certificates.crt\"", path.display())]
    Unreadable { path: PathBuf, source: pem::Error },
    #[error("{} holds no certificate in PEM, which begins with \"-----BEGIN CERTIFICATE-----\"", path.display())]
    Empty { path: PathBuf },
    #[error("a certificate in {} makes no sense: {source}", path.display())]
    Invalid {
        path: PathBuf,
        source: rustls::Error,
    },
}

impl Ca {
    /// The certificates in a file.
    pub fn read(file: &Path) -> Result<Self, CaError> {
        let unreadable = |source| CaError::Unreadable {
            path: file.to_owned(),
            source,
        };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(file).map_err(unreadable)? {
            roots
                .add(certificate.map_err(unreadable)?)
                .map_err(|source| CaError::Invalid {
                    path: file.to_owned(),
                    source,
                })?;
        }
        if roots.is_empty() {
            return Err(CaError::Empty {
                path: file.to_owned(),
            });
        }
        Ok(Self {
            file: file.to_owned(),
            roots: Arc::new(roots),
        })
    }

    /// For who does not look at files: it signs nothing.
    pub(super) fn unread(file: &Path) -> Self {
        Self {
            file: file.to_owned(),
            roots: Arc::new(RootCertStore::empty()),
        }
    }

    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        self.roots.clone()
    }
}

impl PartialEq for Ca {
    fn eq(&self, other: &Self) -> bool {
        // Backends of a pool share one.
        let same = || self.roots.roots == other.roots.roots;
        self.file == other.file && (Arc::ptr_eq(&self.roots, &other.roots) || same())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_whose_certificates_are_others_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.pem");
        let write = || {
            let made = rcgen::generate_simple_self_signed(["ca.example".to_owned()]).unwrap();
            std::fs::write(&file, made.cert.pem()).unwrap();
        };
        write();
        let first = Ca::read(&file).unwrap();
        assert_eq!(first, Ca::read(&file).unwrap());
        write();
        assert_ne!(first, Ca::read(&file).unwrap());
    }
}
