package policy

import (
	"slices"
	"testing"
)

func TestProtocolNames(t *testing.T) {
	for name, want := range map[string]string{
		"http": "http", "HTTP": "http", "tcp": "tcp", "grpc": "grpc",
		"kubernetes.io/h2c": "http2", "kubernetes.io/ws": "http", "kubernetes.io/wss": "tls",
		"https": "tls", "mysql": "tcp", "redis": "tcp", "postgres": "tcp", "PostgreSQL": "tcp", "mongo": "tcp",
		"": "", "udp": "udp", "kubernetes.io/h3": "kubernetes.io/h3", "example.com/http": "example.com/http", // refused, in the user's word
	} {
		if got := NormalProtocol(name); got != want {
			t.Errorf("%q is %q, want %q", name, got, want)
		}
	}
	for _, name := range ProtocolNames() {
		p := NormalProtocol(name)
		e := DefaultEndpoint()
		e.ID, e.ServiceName, e.Namespace, e.IP, e.Port, e.Protocol = "a", "a", "a", "10.0.0.1", 1, p
		if !slices.Contains(Protocols, p) || NormalProtocol(p) != p || len(e.Validate()) > 0 {
			t.Errorf("%q stands for %q: %v", name, p, e.Validate())
		}
	}
}
