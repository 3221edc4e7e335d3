//! Applies changes of services.
//!
//! Owns: what becomes of a service, its revisions and its tallies.
//! Does not know: what services are given of the network; that is `apply_network`.
//! Invariant: a revision lives as long as a task or its service refers to it.

use std::sync::Arc;

use types::{
    ErrorCode, Fault, Reason, Revision, Service, ServiceId, ServiceSpec, SlotKey, Tally, limits,
};

use crate::apply::{Refusal, Stamp, born, check_version, missing, touch};
use crate::{Event, Snapshot};

impl Snapshot {
    pub(crate) fn create_service(
        &mut self,
        stamp: Stamp,
        id: ServiceId,
        spec: &Arc<ServiceSpec>,
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        spec.check().map_err(Refusal::Invalid)?;
        if self.services.contains_key(&id) {
            return Err(Refusal::Exists { what: format!("service {id}") });
        }
        if self.services.len() >= limits::SERVICES_MAX {
            return Err(Refusal::Full { what: "services", max: limits::SERVICES_MAX });
        }
        self.check_uses(id, spec)?;
        let name: Arc<str> = spec.name.to_lowercase().into();
        if self.names.contains_key(&name) {
            return Err(Refusal::NameTaken { name: spec.name.clone() });
        }
        self.names.insert(name, id);
        self.add_revision(id, stamp.index, spec);
        let service = Service {
            id,
            meta: born(stamp),
            spec: Arc::clone(spec),
            previous: None,
            revision: stamp.index,
            update: None,
            reasons: Vec::new(),
            endpoint: None,
        };
        self.net.reindex_service(None, Some(&service));
        self.services.insert(id, Arc::new(service));
        events.push(Event::Service(id));
        Ok(())
    }

    pub(crate) fn update_service(
        &mut self,
        stamp: Stamp,
        id: ServiceId,
        expect: u64,
        spec: &Arc<ServiceSpec>,
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        spec.check().map_err(Refusal::Invalid)?;
        let old = Arc::clone(self.services.get(&id).ok_or_else(|| missing("service", &id))?);
        check_version(&format!("service {}", old.spec.name), Some(old.meta.spec_version), expect)?;
        if old.spec.name != spec.name {
            return Err(Refusal::Invalid(Fault {
                code: ErrorCode::Unimplemented,
                ..Fault::invalid("--name", "renaming services is not supported")
            }));
        }
        if old.spec.mode.name() != spec.mode.name() {
            return Err(Refusal::Invalid(Fault {
                code: ErrorCode::Unimplemented,
                ..Fault::invalid("--mode", "service mode change is not allowed")
            }));
        }
        self.check_uses(id, spec)?;
        // A further port of the mesh changes nothing for tasks that have an address there already.
        let changed = old.spec.task != spec.task
            || old.spec.needs_ingress() != spec.needs_ingress()
            || !old.spec.host_ports().eq(spec.host_ports());
        if changed {
            self.add_revision(id, stamp.index, spec);
        }
        self.with_service(stamp, id, events, |s| {
            s.previous = Some(Arc::clone(&old.spec));
            s.spec = Arc::clone(spec);
            s.meta.spec_version = stamp.index;
            if changed {
                s.revision = stamp.index;
                s.update = None;
            }
        })?;
        self.net.reindex_service(Some(&old), self.services.get(&id).map(|new| &**new));
        self.release_revision((id, old.revision));
        Ok(())
    }

    fn add_revision(&mut self, service: ServiceId, number: u64, spec: &ServiceSpec) {
        self.revisions.insert((service, number), Arc::new(Revision::of(service, number, spec)));
    }

    pub(crate) fn with_service(
        &mut self,
        stamp: Stamp,
        id: ServiceId,
        events: &mut Vec<Event>,
        change: impl FnOnce(&mut Service),
    ) -> Result<(), Refusal> {
        let found = self.services.get(&id).ok_or_else(|| missing("service", &id))?;
        let mut service = (**found).clone();
        change(&mut service);
        touch(&mut service.meta, stamp);
        self.services.insert(id, Arc::new(service));
        events.push(Event::Service(id));
        Ok(())
    }

    pub(crate) fn remove_service(
        &mut self,
        stamp: Stamp,
        id: ServiceId,
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        let service = self.services.remove(&id).ok_or_else(|| missing("service", &id))?;
        self.net.reindex_service(Some(&service), None);
        self.net.rest_of_service(stamp.time, &service, None);
        self.names.remove(service.spec.name.to_lowercase().as_str());
        let slots: Vec<SlotKey> = self.tallies_of_service(id).map(|(slot, _)| slot).collect();
        slots.iter().for_each(|slot| drop(self.tallies.remove(&(id, *slot))));
        self.release_revision((id, service.revision));
        events.push(Event::Service(id));
        Ok(())
    }

    pub(crate) fn set_reason(
        &mut self,
        stamp: Stamp,
        id: ServiceId,
        decider: &str,
        reason: Option<&Reason>,
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        self.with_service(stamp, id, events, |s| {
            s.reasons.retain(|r| r.decider != decider);
            s.reasons.extend(reason.cloned());
            s.reasons.sort_by(|a, b| a.decider.cmp(&b.decider));
        })
    }

    pub(crate) fn set_tally(&mut self, service: ServiceId, slot: SlotKey, tally: Option<&Tally>) {
        match tally {
            Some(tally) if self.services.contains_key(&service) => {
                self.tallies.insert((service, slot), Arc::new(tally.clone()));
            }
            _ => {
                self.tallies.remove(&(service, slot));
            }
        }
    }
}
