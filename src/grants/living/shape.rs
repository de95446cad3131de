//! Which parts of a use grants look at, and the bytes that these parts make.

use crate::grants::Kind;
use crate::grants::Operation;
use crate::grants::Terms;
use crate::grants::Use;
use crate::identity;
use crate::identity::Principal;

/// What grants look at in a use, beside its operation. Two shapes never write the same bytes.
#[derive(PartialEq, Eq)]
pub(super) struct Shape {
    part: Part,
    grantee: identity::Shape,
}

#[derive(PartialEq, Eq)]
enum Part {
    /// Any use of the key in any context.
    Any,
    /// The making of grants, whatever the constraint: compared with that of the grant to be made.
    Create,
    /// The sight of the key, whatever the constraint.
    Describe,
    /// Uses of the key, and the whole context.
    Equals,
    /// Uses of the key in some context: whatever the constraint, if there is one.
    Somewhere,
    /// Uses of the key, and the pairs of these names.
    Subset(Box<[Box<str>]>),
}

impl Part {
    /// The byte that no other part begins with.
    fn mark(&self) -> u8 {
        match self {
            Self::Any => 0,
            Self::Create => 1,
            Self::Describe => 2,
            Self::Equals => 3,
            Self::Somewhere => 4,
            Self::Subset(_) => 5,
        }
    }
}

impl Shape {
    /// Appends what grants of this shape that allow `wanted` stand under; false if none can.
    pub(super) fn write(&self, wanted: &Use<'_>, terms: &mut Vec<u8>) -> bool {
        let uses = wanted.operation.is_use();
        terms.push(self.part.mark());
        let fits = match (&self.part, &wanted.pairs) {
            (Part::Any, _) => uses,
            (Part::Create, _) => false,
            (Part::Describe, _) => wanted.operation == Operation::DescribeKey,
            (Part::Equals, Some(pairs)) => {
                write_pairs(pairs.iter().copied(), terms);
                uses
            }
            (Part::Somewhere, None) => uses,
            (Part::Subset(names), Some(pairs)) => {
                let named = |name: &str| pairs.iter().find(|(known, _)| *known == name).copied();
                let named = names.iter().map_while(|name| named(name));
                uses && write_pairs(named, terms) == names.len()
            }
            (Part::Equals | Part::Subset(_), None) | (Part::Somewhere, Some(_)) => false,
        };
        fits && self.grantee.write(wanted.principal, terms)
    }

    /// As [`Shape::write`], for the making of grants by `principal`.
    pub(super) fn write_creating(&self, principal: &Principal, terms: &mut Vec<u8>) -> bool {
        terms.push(self.part.mark());
        self.part == Part::Create && self.grantee.write(principal, terms)
    }
}

/// The shapes of a grant of these `terms`, and what it stands under in each.
pub(super) fn links(terms: &Terms) -> impl Iterator<Item = (Shape, Vec<u8>)> {
    let has = |operation| terms.operations.contain(operation);
    let uses = terms.operations.iter().any(Operation::is_use);
    let part = match &terms.constraint {
        None => Part::Any,
        Some(constraint) => match constraint.kind() {
            Kind::Equals => Part::Equals,
            Kind::Subset => {
                let names = constraint.pairs().pairs().map(|(name, _)| name.into());
                Part::Subset(names.collect())
            }
        },
    };
    let constrained = terms.constraint.is_some();
    let parts = [
        uses.then_some(part),
        (uses && constrained).then_some(Part::Somewhere),
        has(Operation::CreateGrant).then_some(Part::Create),
        has(Operation::DescribeKey).then_some(Part::Describe),
    ];
    parts.into_iter().flatten().map(|part| {
        let mut bytes = vec![part.mark()];
        if let (Part::Equals | Part::Subset(_), Some(constraint)) = (&part, &terms.constraint) {
            write_pairs(constraint.pairs().pairs(), &mut bytes);
        }
        bytes.extend_from_slice(terms.grantee.as_str().as_bytes());
        let grantee = terms.grantee.shape();
        (Shape { part, grantee }, bytes)
    })
}

/// Appends `pairs`, ordered by name, so that no other pairs are written the same and the end is
/// seen: where one more would begin there is a mark that no length has. Returns how many there were.
fn write_pairs<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>, terms: &mut Vec<u8>) -> usize {
    let mut count = 0;
    for (name, value) in pairs {
        for text in [name, value] {
            terms.extend_from_slice(&text.len().to_be_bytes());
            terms.extend_from_slice(text.as_bytes());
        }
        count += 1;
    }
    terms.extend_from_slice(&usize::MAX.to_be_bytes());
    count
}
