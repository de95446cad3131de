//! What the fake makes of a request: the answer of the service, or the fault that takes its place.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use hyper::HeaderMap;
use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use super::Shared;
use super::answer::Body;
use super::answer::Part;
use super::answer::Reply;
use super::answer::error;
use super::answer::response;
use super::answer::torn;
use super::calls::Call;
use super::calls::Open;
use super::calls::Outcome;
use super::calls::THROTTLED;
use super::faults::Fault;
use super::keys;
use super::lock;
use super::region::Station;
use super::request;
use super::request::Answer;
use super::request::Request;

/// The reply to a request of this head and body.
pub async fn exchange(head: &HeaderMap, body: &[u8], shared: &Arc<Shared>) -> Reply {
    let request = match request::parse(head, body) {
        Ok(request) => request,
        Err(refusal) => {
            let body = Body::whole(error(refusal.code, &refusal.message));
            return Reply::Answer(response(400, Timestamp::now(), body));
        }
    };
    let station = shared.station(&request.region);
    tokio::select! {
        biased;
        () = station.lost() => Reply::Reset,
        reply = reply(&request, head, shared, &station) => reply,
    }
}

async fn reply(request: &Request, head: &HeaderMap, shared: &Shared, station: &Station) -> Reply {
    let key = lock(&shared.service).keys.arn_of(request);
    let named = || request.body["KeyId"].as_str().map(str::to_owned);
    let open = shared.log.open(Call {
        operation: request.operation,
        key: key.clone().or_else(named),
        caller: request.caller.clone(),
        region: request.region.clone(),
        dry: request.is_dry(),
        context: request::context(request).unwrap_or_default(),
        at: shared.clock.now().since(shared.began),
        outcome: None,
        span: (0, None),
    });
    let _ = shared.holds.subscribe().wait_for(|holds| *holds == 0).await;
    let turn = Turn {
        open,
        now: station.now(),
    };
    if let Err(why) = station.trusts(request.signed_at) {
        return turn.refuse(400, "InvalidSignatureException", &why);
    }
    if let Err(retry_after) = station.admits(request.operation, shared.clock.now()) {
        return turn.throttle(retry_after);
    }
    let fault = lock(&shared.faults).next(request.operation, key.as_deref(), &request.region);
    let answer = || lock(&shared.service).answer(request);
    match fault {
        None => turn.answer(answer()),
        Some(Fault::Body(status, body)) => turn.broken(status, Body::whole(body)),
        Some(Fault::Close) => turn.cut(Reply::Torn(Bytes::new())),
        Some(Fault::Code(code, status)) => turn.refuse(status, code, "as the test wants it"),
        Some(Fault::Delay(span)) => {
            tokio::time::sleep(span).await;
            turn.answer(answer())
        }
        Some(Fault::Drip(pace)) => {
            let (status, text, outcome) = told(answer());
            turn.send(status, Body::drip(text, pace), outcome)
        }
        Some(Fault::EchoContext(code)) => {
            let context = &request.body["EncryptionContext"];
            turn.refuse(400, code, &format!("not with {context}"))
        }
        Some(Fault::EchoHead(code)) => {
            let token = &head["x-amz-security-token"];
            let message = format!("not x-amz-security-token:{token:?} of {head:?}");
            turn.refuse(400, code, &message)
        }
        Some(Fault::Garbage) => turn.broken(200, Body::whole("{\"Plaintext\": not so")),
        Some(Fault::HalfHead) => turn.tear(answer(), Part::HalfHead),
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::HeadAlone) => turn.tear(answer(), Part::Head),
        Some(Fault::Huge(length)) => turn.broken(200, Body::spaces(length)),
        Some(Fault::Page(status)) => turn.broken(status, Body::whole("<html>Bad gateway</html>")),
        Some(Fault::Reset) => turn.cut(Reply::Reset),
        Some(Fault::Throttle(retry_after)) => turn.throttle(Some(retry_after)),
        Some(Fault::Truncate) => turn.tear(answer(), Part::HalfBody),
        Some(Fault::Unheard) => {
            drop(answer());
            std::future::pending().await
        }
        Some(Fault::WrongKeyId) => turn.falsify(answer(), |answer| {
            let other = keys::arn(&request.region, &Uuid::new_v4().to_string());
            match answer.get_mut("KeyMetadata") {
                Some(key) => key["Arn"] = other.into(),
                None => answer["KeyId"] = other.into(),
            }
        }),
        Some(Fault::WrongLength(length)) => turn.falsify(answer(), |answer| {
            answer["Plaintext"] = BASE64_STANDARD.encode(keys::random(length)).into();
        }),
    }
}

/// A call whose reply is due, of a server whose clock shows `now`.
struct Turn {
    open: Open,
    now: Timestamp,
}

impl Turn {
    /// What the service says.
    fn answer(self, answer: Answer) -> Reply {
        let (status, text, outcome) = told(answer);
        self.send(status, Body::whole(text), outcome)
    }

    fn refuse(self, status: u16, code: &str, message: &str) -> Reply {
        let outcome = Outcome::Refused(code.to_owned());
        self.send(status, Body::whole(error(code, message)), outcome)
    }

    fn throttle(self, retry_after: Option<Duration>) -> Reply {
        let message = "You have exceeded the rate at which you may call KMS. Reduce the frequency \
                       of your calls.";
        let mut reply = self.refuse(400, THROTTLED, message);
        if let (Reply::Answer(response), Some(span)) = (&mut reply, retry_after) {
            let millis = span.as_millis().to_string();
            let millis = millis.parse().expect("a number");
            response.headers_mut().insert("x-amz-retry-after", millis);
        }
        reply
    }

    /// What no service says.
    fn broken(self, status: u16, body: Body) -> Reply {
        self.send(status, body, Outcome::Broken)
    }

    /// What the service says, but for `change`.
    fn falsify(self, answer: Answer, change: impl FnOnce(&mut Value)) -> Reply {
        match answer {
            Ok(mut answer) => {
                change(&mut answer);
                self.broken(200, Body::whole(answer.to_string()))
            }
            Err(_) => self.answer(answer),
        }
    }

    fn tear(self, answer: Answer, part: Part) -> Reply {
        let (_, text, _) = told(answer);
        let start = torn(&text, self.now, part);
        self.cut(Reply::Torn(start))
    }

    fn cut(self, reply: Reply) -> Reply {
        self.open.end(Outcome::Broken);
        reply
    }

    fn send(self, status: u16, body: Body, outcome: Outcome) -> Reply {
        Reply::Answer(response(status, self.now, body.ending(self.open, outcome)))
    }
}

/// Status, text and outcome of what the service says.
fn told(answer: Answer) -> (u16, String, Outcome) {
    match answer {
        Ok(answer) => (200, answer.to_string(), Outcome::Answered),
        Err(refusal) => (
            400,
            error(refusal.code, &refusal.message),
            Outcome::Refused(refusal.code.to_owned()),
        ),
    }
}
