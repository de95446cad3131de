//! The configuration file: each room's own part, joined; strict, and checked whole before
//! anything of it takes effect.

mod error;

use std::collections::HashSet;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::SignedDuration;
use jiff::Timestamp;
use serde::Deserialize;

use crate::audit;
use crate::broker::Management;
use crate::broker::Origin;
use crate::datakeys;
use crate::directory::Clash;
use crate::directory::Directory;
use crate::directory::Documents;
use crate::directory::Key;
use crate::grants;
use crate::grpc::Limits;
use crate::grpc::listener;
use crate::grpc::tls;
use crate::grpc::tls::Material;
use crate::identity;
use crate::identity::DEV_TRUST_DOMAIN;
use crate::identity::Operators;
use crate::identity::Rules;
use crate::kms;
use crate::kms::KeyRef;
use crate::kms::Reach;
use crate::kms::local::Keyring;
use crate::kms::local::Purpose;
use crate::mem;
use crate::name::TenantId;
use crate::quota;
use crate::store;
use crate::strict;
use crate::strict::OutOfBounds;

pub use error::Error;

/// The file. Paths in it are relative to its folder.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The tenants file: with it, the store's tenants are what it says. Without, the store has them
    /// from `keybroker apply`.
    pub tenants_file: Option<PathBuf>,
    /// Where tenants are kept.
    #[serde(default)]
    pub store: store::Config,
    /// Where to listen.
    pub listen: listener::Config,
    /// Our own certificate; required with `listen.tcp`.
    pub tls: Option<tls::Config>,
    /// Who is who.
    #[serde(default)]
    pub identity: identity::Config,
    /// Who may call the AdminService.
    #[serde(default)]
    pub operators: Operators,
    /// Where data keys are wrapped.
    #[serde(default)]
    pub kms: kms::Config,
    /// The data-key cache.
    #[serde(default)]
    pub cache: datakeys::Config,
    /// Where audit records go.
    #[serde(default)]
    pub audit: audit::Config,
    /// Bounds of the server.
    #[serde(default)]
    pub limits: Limits,
    /// What callers may spend.
    #[serde(default)]
    pub quota: quota::Config,
    /// How keys are kept in memory.
    #[serde(default)]
    pub memory: mem::Config,
    /// Grant tokens.
    #[serde(default)]
    pub grants: grants::Config,
    /// What it is read for: no part of the file, so that no file turns production into a
    /// playground.
    #[serde(skip, default = "production")]
    pub purpose: Purpose,
}

fn production() -> Purpose {
    Purpose::Production
}

/// What a reload replaces: identities, tenants and TLS material, fitting each other.
pub struct State {
    /// Identity rules.
    pub rules: Rules,
    /// The tenants file, read; none where the store alone has the tenants.
    pub tenants: Option<Tenants>,
    /// Certificate, bundles and revocation lists; none without a TLS listener.
    pub material: Option<Material>,
}

/// What a tenants file says.
pub struct Tenants {
    /// As a directory, for checks.
    pub directory: Directory,
    /// Tenant by tenant, for the store.
    pub documents: Documents,
}

impl Tenants {
    /// Checks that every `local:` key that they name is in `keyring`.
    ///
    /// # Errors
    /// [`Error::NoLocalKey`] for the first that is not.
    pub fn check_keyring(&self, keyring: &Keyring) -> Result<(), Error> {
        let known: HashSet<String> = keyring
            .keys()
            .into_iter()
            .map(|key| key.id.to_string())
            .collect();
        let tenants = self.directory.tenants();
        for key in tenants.flat_map(|tenant| self.directory.keys(tenant.id())) {
            for kms in key.kms().iter() {
                if let KeyRef::Local(id) = kms
                    && !known.contains(id)
                {
                    return Err(Error::NoLocalKey {
                        key: key.name().clone(),
                        id: id.clone(),
                    });
                }
            }
        }
        Ok(())
    }
}

impl Config {
    /// Reads the file at `path`, for production, and checks what can be checked without other
    /// files.
    ///
    /// # Errors
    /// [`Error`], at the first thing that is wrong.
    pub fn load(path: &Path) -> Result<Self, Error> {
        Self::load_for(path, Purpose::Production)
    }

    /// As [`Config::load`], for `purpose`.
    ///
    /// # Errors
    /// [`Error`], at the first thing that is wrong.
    pub fn load_for(path: &Path, purpose: Purpose) -> Result<Self, Error> {
        let owned = || path.to_owned();
        let text = std::fs::read_to_string(path).map_err(|source| Error::Unreadable {
            path: owned(),
            source,
        })?;
        let mut config: Self = strict::parse(&text).map_err(|source| Error::Syntax {
            path: owned(),
            source,
        })?;
        config.purpose = purpose;
        config.anchor(path.parent().unwrap_or_else(|| Path::new("")));
        config.limits.check().map_err(|source| Error::Limit {
            path: owned(),
            source,
        })?;
        config.audit.check().map_err(|source| Error::Limit {
            path: owned(),
            source,
        })?;
        config.quota.check().map_err(|source| Error::Limit {
            path: owned(),
            source,
        })?;
        config.cache.check().map_err(|source| Error::Limit {
            path: owned(),
            source,
        })?;
        config.store.check().map_err(|source| Error::Limit {
            path: owned(),
            source,
        })?;
        config.kms.aws.check().map_err(|source| Error::Aws {
            path: owned(),
            source,
        })?;
        config.listen.check().map_err(|source| Error::Listen {
            path: owned(),
            source,
        })?;
        if let Some(local) = &config.kms.local
            && let Some(period) = local.rotation_period
            && !(LEAST_ROTATION..=MOST_ROTATION).contains(&period)
        {
            return Err(Error::Limit {
                path: owned(),
                source: OutOfBounds {
                    name: "kms.local.rotation_period",
                    value: format!("{period:#}"),
                    least: "24h",
                    most: "87600h",
                },
            });
        }
        match &config.listen {
            listener::Config {
                tcp: None,
                unix: None,
                ..
            } => Err(Error::NoListener { path: owned() }),
            listener::Config { tcp: Some(_), .. } if config.tls.is_none() => Err(Error::Missing {
                path: owned(),
                needs: "listen.tcp".into(),
                section: "tls",
            }),
            _ => Ok(config),
        }
    }

    /// Reads all that a reload replaces. `path` is this file's, for errors.
    ///
    /// # Errors
    /// [`Error`]: then nothing of it is usable, and what was in force stays so.
    pub fn state(&self, path: &Path, now: Timestamp) -> Result<State, Error> {
        let rules = Rules::new(&self.identity).map_err(|source| Error::Rules {
            path: path.to_owned(),
            source,
        })?;
        if self.purpose == Purpose::Production {
            self.check_production(path)?;
        }
        let tenants = match &self.tenants_file {
            Some(file) => Some(self.tenants(path, file, &rules)?),
            None => None,
        };
        // Names that no rule may set, whatever tenants there are.
        Directory::default()
            .check_rules(&rules)
            .map_err(|source| Error::Clash {
                path: path.to_owned(),
                source,
            })?;
        let material = match (&self.listen.tcp, &self.tls) {
            (Some(_), Some(tls)) => Some(Material::load(tls, &rules, now)?),
            _ => None,
        };
        Ok(State {
            rules,
            tenants,
            material,
        })
    }

    /// Reads the tenants file `file`, which must fit this configuration and `rules`. `path` is this
    /// file's, for errors.
    ///
    /// # Errors
    /// [`Error`] at the first thing that is wrong.
    pub fn tenants(&self, path: &Path, file: &Path, rules: &Rules) -> Result<Tenants, Error> {
        let (directory, documents) = Directory::load_with_documents(file)?;
        for tenant in directory.tenants() {
            self.fits(path, directory.keys(tenant.id()))?;
        }
        directory
            .check_rules(rules)
            .map_err(|source| Error::Clash {
                path: path.to_owned(),
                source,
            })?;
        Ok(Tenants {
            directory,
            documents,
        })
    }

    /// `directory` as it can serve under this configuration and `rules`: without the tenants that
    /// fit neither, each with the reason. `path` is this file's, for errors.
    pub fn fit(
        &self,
        path: &Path,
        directory: Directory,
        rules: &Rules,
    ) -> (Directory, Vec<(TenantId, Error)>) {
        directory.without(|tenant, keys| {
            let clash = Clash::of(tenant, rules).map(|source| Error::Clash {
                path: path.to_owned(),
                source,
            });
            clash.or_else(|| self.fits(path, keys).err())
        })
    }

    /// Who manages the tenants, and within which bounds.
    pub fn management(&self) -> Management {
        Management {
            operators: self.operators.clone(),
            reach: self.reach(),
            origin: match self.tenants_file {
                Some(_) => Origin::File,
                None => Origin::Store,
            },
        }
    }

    /// Whether `next` asks for a change that only a restart can make: which section.
    pub fn needs_restart(&self, next: &Self) -> Option<&'static str> {
        if self.listen != next.listen {
            return Some("listen");
        }
        if self.kms != next.kms {
            return Some("kms");
        }
        if self.cache != next.cache {
            return Some("cache");
        }
        if self.store != next.store {
            return Some("store");
        }
        if self.audit != next.audit {
            return Some("audit");
        }
        if self.limits != next.limits {
            return Some("limits");
        }
        if self.quota != next.quota {
            return Some("quota");
        }
        (self.memory != next.memory).then_some("memory")
    }

    /// The files that a reload reads, this one aside.
    pub fn files(&self) -> Vec<&Path> {
        let mut files: Vec<&Path> = self.tenants_file.as_deref().into_iter().collect();
        if let Some(tls) = &self.tls {
            files.extend([tls.certificate.as_path(), tls.private_key.as_path()]);
        }
        for bundle in &self.identity.bundle {
            files.push(&bundle.file);
            files.extend(bundle.crl.as_deref());
        }
        files.extend(
            self.identity
                .rule
                .iter()
                .filter_map(|rule| rule.bundle.as_deref()),
        );
        files
    }

    /// Whether `keys` can be served: local ones where there is a keyring, and no real ones by a
    /// playground, which would be none.
    fn fits(&self, path: &Path, keys: &[Arc<Key>]) -> Result<(), Error> {
        for key in keys {
            match key.out_of(self.reach()) {
                None => {}
                Some(KeyRef::Local(_)) => {
                    return Err(Error::Missing {
                        path: path.to_owned(),
                        needs: format!("the key {}", key.name()),
                        section: "kms.local",
                    });
                }
                Some(KeyRef::Aws(_) | KeyRef::MultiRegion(_)) => {
                    return Err(Error::RealKey {
                        path: path.to_owned(),
                        key: key.name().clone(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Which KMS keys may be called.
    fn reach(&self) -> Reach {
        match (self.purpose, &self.kms.local) {
            (Purpose::Dev, _) => Reach::Local,
            (Purpose::Production, Some(_)) => Reach::AwsAndLocal,
            (Purpose::Production, None) => Reach::Aws,
        }
    }

    /// The private keys of `keybroker dev` have lain in a folder for trying things out: whoever
    /// they vouch for may be anybody.
    fn check_production(&self, path: &Path) -> Result<(), Error> {
        let dev = |path: &Path, what| Error::Dev {
            path: path.to_owned(),
            what,
        };
        for bundle in &self.identity.bundle {
            if bundle.trust_domain.as_str() == DEV_TRUST_DOMAIN {
                return Err(dev(path, "the trust domain dev.keybroker.test"));
            }
        }
        // Certificates are read for TLS alone.
        let (Some(_), Some(tls)) = (&self.listen.tcp, &self.tls) else {
            return Ok(());
        };
        let bundles = self.identity.bundle.iter().map(|bundle| &bundle.file);
        let dns_bundles = self
            .identity
            .rule
            .iter()
            .filter_map(|rule| rule.bundle.as_ref());
        for file in bundles.chain(dns_bundles) {
            if tls::is_for_dev(file)? {
                return Err(dev(file, "this bundle"));
            }
        }
        if tls::is_for_dev(&tls.certificate)? {
            return Err(dev(&tls.certificate, "this certificate"));
        }
        Ok(())
    }

    /// Makes relative paths relative to `folder`.
    fn anchor(&mut self, folder: &Path) {
        let anchor = |path: &mut PathBuf| *path = folder.join(&*path);
        self.tenants_file.as_mut().map(anchor);
        self.store.anchor(folder);
        self.grants.anchor(folder);
        if let Some(tls) = &mut self.tls {
            anchor(&mut tls.certificate);
            anchor(&mut tls.private_key);
        }
        for bundle in &mut self.identity.bundle {
            anchor(&mut bundle.file);
            bundle.crl.as_mut().map(anchor);
        }
        for rule in &mut self.identity.rule {
            rule.bundle.as_mut().map(anchor);
        }
        if let Some(unix) = &mut self.listen.unix {
            anchor(&mut unix.path);
        }
        self.audit.file.as_mut().map(anchor);
        self.audit.signing_key.as_mut().map(anchor);
        self.cache.warm_file.as_mut().map(anchor);
        self.kms.anchor(folder);
    }
}

/// A key has few versions, and each rotation is for ever: a day apart at least.
const LEAST_ROTATION: SignedDuration = SignedDuration::from_hours(24);
const MOST_ROTATION: SignedDuration = SignedDuration::from_hours(87_600);
