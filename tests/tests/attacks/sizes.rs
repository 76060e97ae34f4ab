//! Sizes of segments and links.
