package policy

import (
	"strings"
	"testing"
)

func TestAnEndpointOutsideHasAHostInThePlaceOfAnAddress(t *testing.T) {
	outside := func(change func(*Endpoint)) Problems {
		e := DefaultEndpoint()
		e.ID, e.ServiceName, e.Namespace, e.Port, e.Host = "api", "payments", "default", 443, "api.example.com"
		change(&e)
		return e.Validate()
	}
	if p := outside(func(e *Endpoint) { e.TLS, e.ServerName = TLSOriginate, "other.example.com" }); len(p) > 0 {
		t.Error(p)
	}
	for want, change := range map[string]func(*Endpoint){
		`ip: "10.0.0.1" stands beside the host`:      func(e *Endpoint) { e.IP = "10.0.0.1" },
		`host: "10.0.0.1" is an address`:             func(e *Endpoint) { e.Host = "10.0.0.1" },
		`host: "API.example.com" is not a host name`: func(e *Endpoint) { e.Host = "API.example.com" },
		`host: "a..b" is not a host name`:            func(e *Endpoint) { e.Host = "a..b" },
		`host: "*.example.com" is not a host name`:   func(e *Endpoint) { e.Host = "*.example.com" },
		`is longer than 253`:                         func(e *Endpoint) { e.Host = strings.Repeat("a.", 127) + "a" },
		`tls: "terminate" is not one of originate`:   func(e *Endpoint) { e.TLS = "terminate" },
		`tls: is missing`:                            func(e *Endpoint) { e.ServerName = "a.example.com" },
		`ca: holds no certificate in PEM`:            func(e *Endpoint) { e.TLS, e.CA = TLSOriginate, "x" },
		`ca: 70000 bytes are more than 64 KiB`:       func(e *Endpoint) { e.TLS, e.CA = TLSOriginate, strings.Repeat("x", 70000) },
		`server_name: "a b" is not a host name`:      func(e *Endpoint) { e.TLS, e.ServerName = TLSOriginate, "a b" },
		`host: is missing: tls, server_name and ca`:  func(e *Endpoint) { e.Host, e.IP, e.TLS = "", "10.0.0.1", TLSOriginate },
		`ip: "" is not an IP address`:                func(e *Endpoint) { e.Host = "" },
	} {
		if p := outside(change); !strings.Contains(p.Error(), want) {
			t.Errorf("problems are %v, want %q", p, want)
		}
	}
}
