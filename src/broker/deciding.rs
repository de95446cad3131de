//! Decisions whether the caller may use a key: asked of the policy, counted and timed.

use tokio::time::Instant;

use crate::broker::Call;
use crate::broker::binding::refusal;
use crate::error::Error;
use crate::metrics::Decision;
use crate::policy::Action;
use crate::policy::Refused;

impl Call<'_> {
    /// What `ask` decides about `action`; to the caller, as the table of errors has it.
    pub(super) fn decide<T>(
        &self,
        action: Action,
        ask: impl FnOnce() -> Result<T, Refused>,
    ) -> Result<T, Error> {
        self.decided(ask)
            .map_err(|refused| refusal(refused, action))
    }

    /// What `ask` decides.
    pub(super) fn decided<T>(
        &self,
        ask: impl FnOnce() -> Result<T, Refused>,
    ) -> Result<T, Refused> {
        let metrics = self.broker.metrics();
        if !metrics.counting() {
            return ask();
        }
        let began = Instant::now();
        let decided = ask();
        let took = began.elapsed();
        let decision = match &decided {
            Ok(_) => Decision::Allow,
            Err(Refused::Denied(_) | Refused::Suspended) => Decision::Deny,
            Err(Refused::Context(_) | Refused::Mismatch(_)) => Decision::Invalid,
            Err(Refused::OutOfTouch) => {
                // Before all grants are known the store is asked, and counts if it is silent.
                if self.broker.grants.is_whole() {
                    metrics.undecided();
                }
                return decided;
            }
        };
        metrics.decided(decision, took);
        decided
    }
}
