package policy

import (
	"slices"
	"strings"
)

// NormalProtocol gives the one of Protocols that a name stands for: a name of
// Protocols itself, a value of Kubernetes' appProtocol, or the name of a protocol
// that many services speak. Case does not matter. A name that stands for none is
// given back as it is, for Validate to refuse in the user's own word.
func NormalProtocol(name string) string {
	lower := strings.ToLower(name)
	if slices.Contains(Protocols, lower) {
		return lower
	}
	if p, ok := protocolNames[lower]; ok {
		return p
	}
	return name
}

// ProtocolNames lists all names that NormalProtocol knows: Protocols in their
// order, then the others sorted.
func ProtocolNames() []string {
	var others []string
	for name := range protocolNames {
		others = append(others, name)
	}
	slices.Sort(others)
	return append(slices.Clone(Protocols), others...)
}

// protocolNames are the standard names of appProtocol (KEP-3726: h2c is HTTP/2
// without TLS, ws and wss are WebSocket without and with), and the names of IANA
// and of everyday use that say no more than whether TLS begins the connection.
// WebSocket begins as HTTP/1.1; gRPC-Web is HTTP of either version, and so read
// as "http". What is not here is better refused than guessed: a name may mean
// that the server speaks first.
var protocolNames = map[string]string{
	"http/1.1": "http", "ws": "http", "kubernetes.io/ws": "http", "websocket": "http", "grpc-web": "http",
	"h2c": "http2", "kubernetes.io/h2c": "http2",

	"https": "tls", "wss": "tls", "kubernetes.io/wss": "tls", "ssl": "tls",
	"amqps": "tls", "ftps": "tls", "imaps": "tls", "ldaps": "tls", "mqtts": "tls", "pop3s": "tls", "smtps": "tls", "submissions": "tls",

	"amqp": "tcp", "cassandra": "tcp", "ftp": "tcp", "imap": "tcp", "kafka": "tcp", "ldap": "tcp", "mariadb": "tcp",
	"memcache": "tcp", "memcached": "tcp", "mongo": "tcp", "mongodb": "tcp", "mqtt": "tcp", "mysql": "tcp", "nats": "tcp",
	"pop3": "tcp", "postgres": "tcp", "postgresql": "tcp", "redis": "tcp", "smtp": "tcp", "ssh": "tcp", "submission": "tcp", "zookeeper": "tcp",
}
