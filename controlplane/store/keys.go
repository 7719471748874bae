package store

import (
	"strings"

	"github.com/weir-mesh/weir/policy"
)

// keys is the prefix of every key. Below it:
//
//	mesh/services/<namespace>/<service>/virtual         index of the virtual addresses
//	mesh/services/<namespace>/<service>/endpoints/<id>  endpointRecord
//	mesh/services/<namespace>/<service>/rules/<id>      policy.TrafficRule
//	mesh/services/<namespace>/<service>/circuits/<id>   circuitRecord, of the endpoint with the id
//	mesh/security/<id>                                  policy.SecurityRule
//	mesh/settings                                       policy.Settings
//	mesh/file                                           File
//	mesh/proxies/<id>                                   proxyRecord
//	mesh/revoked/<id>                                   revocationRecord
//	mesh/roots                                          policy.Roots
//	history/log/<class>/<time>                          logRecord
//	history/diff/<class>/<time>                         differences, compressed when large
//	history/forgotten                                   the newest revision that was removed
//	virtual-last                                        the last index given out
//	secrets/<key>                                       raw bytes
//	tokens/<id>                                         tokenRecord, for as long as the join token holds
//	token-uses/<id>/<by>                                nothing: by has used the token
//	checked/<namespace>/<service>/<endpoint>            why its status is what it is, as the one who checks says
//	head                                                put by each write; its revision is that of the last one
//	members/<lease>                                     Member, while the control plane lives
//	leader/<lease>                                      the election
//	tasks/<task>/<lease>                                elections among those that can do a task
//
// Values are JSON. Only mesh/ is watched and read as a whole, so secrets are
// read by none but those who ask for them.
type keys string

func (k keys) mesh() string        { return string(k) + "mesh/" }
func (k keys) settings() string    { return string(k) + "mesh/settings" }
func (k keys) file() string        { return string(k) + "mesh/file" }
func (k keys) roots() string       { return string(k) + "mesh/roots" }
func (k keys) virtualLast() string { return string(k) + "virtual-last" }

func (k keys) log(class string) string  { return string(k) + "history/log/" + class }
func (k keys) diff(class string) string { return string(k) + "history/diff/" + class }
func (k keys) forgotten() string        { return string(k) + "history/forgotten" }

func (k keys) security(id string) string { return string(k) + "mesh/security/" + id }
func (k keys) proxy(id string) string    { return string(k) + "mesh/proxies/" + id }
func (k keys) token(id string) string    { return string(k) + "tokens/" + id }
func (k keys) revoked(id string) string  { return string(k) + "mesh/revoked/" + id }
func (k keys) secret(key string) string  { return string(k) + "secrets/" + key }
func (k keys) head() string              { return string(k) + "head" }
func (k keys) leader() string            { return string(k) + "leader" }
func (k keys) task(name string) string   { return string(k) + "tasks/" + name }
func (k keys) members() string           { return string(k) + "members/" }

func (k keys) tokenUse(id, by string) string { return string(k) + "token-uses/" + id + "/" + by }

func (k keys) checks() string { return string(k) + "checked/" }

func (k keys) checked(n policy.ServiceName, id string) string {
	return k.checks() + n.String() + "/" + id
}

func (k keys) service(n policy.ServiceName) string {
	return string(k) + "mesh/services/" + n.String() + "/"
}
func (k keys) virtual(n policy.ServiceName) string { return k.service(n) + "virtual" }
func (k keys) endpoints(n policy.ServiceName) string {
	return k.service(n) + "endpoints/"
}
func (k keys) endpoint(n policy.ServiceName, id string) string { return k.endpoints(n) + id }
func (k keys) rules(n policy.ServiceName) string               { return k.service(n) + "rules/" }
func (k keys) circuit(n policy.ServiceName, id string) string  { return k.service(n) + "circuits/" + id }
func (k keys) rule(n policy.ServiceName, id string) string     { return k.rules(n) + id }

// kind is what a key below mesh/ holds.
type kind int

const (
	unknownKey kind = iota
	virtualKey
	endpointKey
	ruleKey
	securityKey
	settingsKey
	proxyKey
	fileKey
	circuitKey
	revokedKey
	rootsKey
)

// parse reads a key below mesh/.
func (k keys) parse(key string) (kind, policy.ServiceName, string) {
	none := policy.ServiceName{}
	rest, ok := strings.CutPrefix(key, k.mesh())
	if !ok {
		return unknownKey, none, ""
	}
	parts := strings.Split(rest, "/")
	switch {
	case rest == "settings":
		return settingsKey, none, ""
	case rest == "file":
		return fileKey, none, ""
	case rest == "roots":
		return rootsKey, none, ""
	case len(parts) == 2 && parts[0] == "revoked":
		return revokedKey, none, parts[1]
	case len(parts) == 2 && parts[0] == "security":
		return securityKey, none, parts[1]
	case len(parts) == 2 && parts[0] == "proxies":
		return proxyKey, none, parts[1]
	case len(parts) < 4 || parts[0] != "services":
		return unknownKey, none, ""
	}
	name := policy.ServiceName{Namespace: parts[1], Name: parts[2]}
	switch {
	case len(parts) == 4 && parts[3] == "virtual":
		return virtualKey, name, ""
	case len(parts) == 5 && parts[3] == "endpoints":
		return endpointKey, name, parts[4]
	case len(parts) == 5 && parts[3] == "rules":
		return ruleKey, name, parts[4]
	case len(parts) == 5 && parts[3] == "circuits":
		return circuitKey, name, parts[4]
	}
	return unknownKey, none, ""
}
