package dns

import "strings"

// meshName takes a query's name apart as a service's name and its namespace.
// The forms are name, name.namespace, name.namespace.svc and
// name.namespace.svc.<cluster domain>, in any case, with the trailing dot that
// every name in a message has. That it is of the form does not mean that there
// is such a service: example.com is too.
func (c *Config) meshName(query string) (namespace, name string, ok bool) {
	query = strings.TrimSuffix(lower(query), ".")
	if full, ok := strings.CutSuffix(query, "."+c.ClusterDomain); ok {
		// Only ".svc" is the mesh's under the cluster's domain.
		if query, ok = strings.CutSuffix(full, ".svc"); !ok || strings.Count(query, ".") != 1 {
			return "", "", false
		}
	}
	labels := strings.Split(query, ".")
	for _, l := range labels {
		if l == "" {
			return "", "", false
		}
	}
	switch {
	case len(labels) == 1:
		return c.Namespace, labels[0], true
	case len(labels) == 2, len(labels) == 3 && labels[2] == "svc":
		return labels[1], labels[0], true
	}
	return "", "", false
}

// underscored takes the labels off a name that begin with an underscore (RFC 8552):
// "_grpc_config.users" is asked for by every client of grpc-go, before its first call.
func underscored(query string) (below string, ok bool) {
	below = query
	for strings.HasPrefix(below, "_") {
		_, below, _ = strings.Cut(below, ".")
	}
	return below, len(below) < len(query) && below != ""
}

// lower folds ASCII only, as the DNS does (RFC 4343): a byte above 127 is
// another byte, not another case.
func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + ('a' - 'A')
		}
	}
	return string(b)
}

// hostName is a query's name as that of a host that may be outside the mesh: with
// a dot in it, and not one of those by which addresses are looked up.
func hostName(query string) (string, bool) {
	host := strings.TrimSuffix(lower(query), ".")
	if !strings.Contains(host, ".") || strings.HasSuffix(host, ".arpa") {
		return "", false
	}
	for _, c := range []byte(host) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '.' {
			return "", false // no name of a host (RFC 1123 section 2.1)
		}
	}
	return host, true
}
