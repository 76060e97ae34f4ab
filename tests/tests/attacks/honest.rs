//! What honest programs do still works.
