//! DHCP and router advertisements: who asks whom, and who answers.
