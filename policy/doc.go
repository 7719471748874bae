// Package policy is the vocabulary of the mesh and its decisions: services,
// endpoints, traffic rules, security rules and settings; how they are checked,
// how a request is routed and who may call whom. It is pure: no clock, no
// socket, no goroutine; storing, distributing and enforcing are left to others.
package policy
