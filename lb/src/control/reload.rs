//! What a reload does with the config that was read.

use std::{sync::Arc, time::SystemTime};

use super::{Control, Dataplane, Event, Refused, Reload, chain, config_file::Reading};
use crate::config::{self, Config};

impl<P: Dataplane> Control<P> {
    pub(super) fn reload(&mut self, reading: Reading) -> Result<(), Refused> {
        let result = reading.config.and_then(|new| self.take_config(new));
        let error = result.as_ref().err().map(ToString::to_string);
        match &error {
            None => tracing::info!(file = self.config.origin.file, "config reloaded"),
            Some(error) => {
                tracing::error!(%error, "config refused; the one before stays in force");
            }
        }
        self.events.tell(match &error {
            None => Event::ReloadDone {
                config_hash: self.view.load().config_hash,
            },
            Some(error) => Event::ReloadRefused {
                error: error.clone(),
            },
        });
        let reload = Reload {
            at: SystemTime::now(),
            error,
        };
        self.publish(|view| view.last_reload = reload);
        result
    }

    /// Makes this the config in force, or leaves all as it is.
    fn take_config(&mut self, new: Config) -> Result<(), Refused> {
        self.check_config(&new)?;
        let old = std::mem::replace(&mut self.config, Arc::new(new));
        self.rules.follow(&self.config);
        let attached = self.attach_as(&old);
        self.watch();
        self.reconcile();
        self.rules.apply(&mut self.plane, |_| true);
        let sets = self.sets.follow(&self.config, &mut self.plane);
        let result = attached.and(sets).and_then(|()| self.applied());
        if result.is_err() {
            let refused = std::mem::replace(&mut self.config, old);
            self.rules.follow(&self.config);
            if let Err(error) = self.attach_as(&refused) {
                tracing::error!(%error, "cannot go back to the interfaces of the config before; correct `interfaces`, and reload");
            }
            self.watch();
            self.reconcile();
            self.rules.apply(&mut self.plane, |_| true);
            // They were there before.
            _ = self.sets.follow(&self.config, &mut self.plane);
        } else {
            self.end_orphans();
        }
        result
    }

    /// Whether a reload would take it.
    pub(super) fn check_config(&self, new: &Config) -> Result<(), Refused> {
        config::check_host(new)?;
        if let Some(message) = needs_restart(&self.config, new) {
            return Err(Refused::Invalid {
                field: None,
                message,
            });
        }
        self.rules.fit_with(new)?;
        self.sets.fit_with(new)
    }

    /// Attaches to the interfaces of the config, if they are others than before.
    fn attach_as(&mut self, before: &Config) -> Result<(), Refused> {
        let interfaces = &self.config.dataplane.interfaces;
        if *interfaces == before.dataplane.interfaces {
            return Ok(());
        }
        self.plane
            .set_interfaces(interfaces)
            .map_err(|error| Refused::Failed(chain(&*error)))
    }
}

/// What a reload cannot change, and what to do instead.
fn needs_restart(old: &Config, new: &Config) -> Option<String> {
    let with_interfaces = config::Dataplane {
        interfaces: new.dataplane.interfaces.clone(),
        ..old.dataplane.clone()
    };
    if with_interfaces != new.dataplane {
        return Some(
            "[dataplane] is set when the program is loaded, and only `interfaces` can change at a reload; \
             to change the rest, stop the daemon, run `sluice unload`, and start it again"
                .into(),
        );
    }
    if old.api != new.api {
        return Some(
            "[api] is set at start, but for what the files in it hold; to change it, restart the daemon (packets are forwarded meanwhile)"
                .into(),
        );
    }
    if old.pop.secret_file != new.pop.secret_file {
        return Some(
            "`secret_file` is read at start; to change it, restart the daemon (packets are forwarded meanwhile)"
                .into(),
        );
    }
    None
}
