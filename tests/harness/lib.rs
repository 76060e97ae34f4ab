//! Namespaces, links and daemons for end-to-end tests, made and removed by RAII.
