package main

import (
	"strings"
	"testing"

	"github.com/weir-mesh/weir/proxy"
)

func TestAnAppPortMayBeDeclaredByKubernetesNames(t *testing.T) {
	f := defaults()
	f.appPorts = []string{"80", "81/kubernetes.io/h2c", "82/kubernetes.io/ws", "443/https", "3306/MySQL", "5432/postgres"}
	var cfg proxy.Config
	if err := f.setPorts(&cfg); err != nil {
		t.Fatal(err)
	}
	want := []proxy.AppPort{{Port: 80, Protocol: "http"}, {Port: 81, Protocol: "http2"}, {Port: 82, Protocol: "http"}, {Port: 443, Protocol: "tls"}, {Port: 3306, Protocol: "tcp"}, {Port: 5432, Protocol: "tcp"}}
	for i, w := range want {
		if cfg.AppPorts[i] != w {
			t.Errorf("%s is %+v, want %+v", f.appPorts[i], cfg.AppPorts[i], w)
		}
	}
	f.appPorts = []string{"53/udp"}
	if err := f.setPorts(&cfg); err == nil || !strings.Contains(err.Error(), `"udp" is not one of http`) {
		t.Errorf("udp: %v", err)
	}
}
