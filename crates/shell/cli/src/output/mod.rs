//! What is printed: tables, templates, and amounts for people.
//!
//! Owns: the forms. Does not know: objects of the cluster; rows come from the commands.
//! Invariant: what is written equals docker's, character by character, where docker has it.

pub(crate) mod human;
mod list;
pub(crate) mod pretty;
mod table;
mod template;

pub(crate) use list::{List, Row, row_of};
pub(crate) use template::Template;
