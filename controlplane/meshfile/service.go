package meshfile

import (
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"net/url"
	"reflect"
	"strconv"
	"strings"

	"github.com/weir-mesh/weir/policy"
)

// Keys of a service: its instances, and the settings that POST /config knows for
// one service. Keys of an instance: seed A's, and the two that subsets and the
// strategy "weighted" need.
var (
	serviceKeys  = append([]string{"instances"}, settingNames()...)
	instanceKeys = []string{"url", "health_check", "circuit_timeout", "retry_count", "retry_delay", "rate_limit", "timeout", "weight", "labels"}
)

func settingNames() []string {
	var out []string
	t := reflect.TypeFor[policy.ServiceSettings]()
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		out = append(out, name)
	}
	return out
}

// ofRequest are the keys of an instance that hold for a request, which may try
// several instances, and so are the same for all of a service: by the setting of
// the service that each of them is.
var ofRequest = []struct{ key, setting string }{
	{"timeout", "timeout"}, {"retry_count", "retry_attempts"}, {"retry_delay", "retry_delay"},
}

// readServices gives the services' own settings by "namespace/name".
func (r *reader) readServices(v any) map[string]any {
	const path = "mesh.services"
	out := map[string]any{}
	services, ok := r.object(path, v)
	if !ok {
		return out
	}
	for _, key := range sortedKeys(services) {
		at := join(path, key)
		name, err := policy.ParseServiceName(key, "default")
		switch {
		case err != nil:
			r.wrong(at, "%v", err)
			continue
		case name.Namespace == policy.ControlPlane.Namespace:
			r.wrong(at, "namespace %q is the control plane's own", name.Namespace)
			continue
		case r.services[name]:
			r.wrong(at, "%s is there twice, under another spelling", name)
			continue
		}
		r.services[name] = true
		r.out.Services = append(r.out.Services, name)
		if service, ok := r.object(at, services[key]); ok {
			out[name.String()] = r.readService(at, name, service)
		}
	}
	return out
}

func (r *reader) readService(path string, name policy.ServiceName, service map[string]any) map[string]any {
	settings := map[string]any{}
	for _, key := range sortedKeys(service) {
		at := join(path, key)
		switch {
		case key == "instances":
			continue
		case !contains(serviceKeys, key):
			r.wrong(at, "unknown key%s", nearest(key, serviceKeys))
			continue
		case (key == "timeout" || key == "retry_attempts") && isZero(service[key]):
			r.wrong(at, "0 is no %s; leave it out for the mesh's", key)
		}
		settings[key] = service[key]
		r.from["services."+name.String()+"."+key] = at
	}
	r.from["services."+name.String()] = path
	list, ok := service["instances"]
	if !ok {
		return settings
	}
	at := join(path, "instances")
	instances, ok := list.([]any)
	if !ok {
		r.wrong(at, "%s is not a list", show(list))
		return settings
	}
	said := map[string]string{} // settings: where in the file each was said
	for key := range settings {
		said[key] = join(path, key)
	}
	ids := map[string]string{}
	for i, v := range instances {
		at := fmt.Sprintf("%s[%d]", at, i)
		instance, ok := r.object(at, v)
		if !ok {
			continue
		}
		r.readInstance(at, name, instance, ids)
		r.agree(at, name, instance, settings, said)
	}
	return settings
}

// agree takes what one instance says of the service's requests.
func (r *reader) agree(path string, name policy.ServiceName, instance, settings map[string]any, said map[string]string) {
	for _, k := range ofRequest {
		v, ok := instance[k.key]
		if !ok {
			continue
		}
		at := join(path, k.key)
		n, isNumber := r.number(at, v)
		if !isNumber {
			continue
		}
		if n == 0 && k.key != "retry_delay" {
			r.wrong(at, "0 is no %s; leave it out for the mesh's", k.key)
			continue
		}
		first, both := said[k.setting]
		if !both {
			settings[k.setting], said[k.setting] = v, at
			r.from["services."+name.String()+"."+k.setting] = at
			continue
		}
		if other, ok := asNumber(settings[k.setting]); ok && other != n {
			r.wrong(at, "%v is not the %v of %s, line %d: a request may try any instance, so that it is one for all of a service", n, other, first, r.of(first).Line)
		}
	}
}

func (r *reader) readInstance(path string, name policy.ServiceName, instance map[string]any, ids map[string]string) {
	for _, key := range sortedKeys(instance) {
		if !contains(instanceKeys, key) {
			r.wrong(join(path, key), "unknown key%s", nearest(key, instanceKeys))
		}
	}
	before := len(r.problems)
	e := policy.DefaultEndpoint()
	e.ServiceName, e.Namespace = name.Name, name.Namespace
	i := Instance{path: path}
	r.readURL(path, instance, &i.Host, &e)
	if text, ok := stringAt(r, path, instance, "health_check"); ok {
		e.HealthCheckPath = text
		if e.Protocol != "http" && e.Protocol != "http2" && len(r.problems) == before {
			r.warn(join(path, "health_check"), "without effect: an instance of protocol %s is checked by %s", e.Protocol, checkOf(e.Protocol))
		}
	}
	r.positive(path, instance, "circuit_timeout", func(n float64) { e.CircuitTimeout = n })
	r.whole(path, instance, "rate_limit", func(n int) { e.RateLimit = n })
	r.whole(path, instance, "weight", func(n int) { e.Weight = n })
	if v, ok := instance["labels"]; ok {
		r.readLabels(join(path, "labels"), v, &e)
	}
	if len(r.problems) > before {
		return
	}
	i.Endpoint = e
	if r.check(path, &i) {
		at := join(path, "url")
		if first, twice := ids[i.Prefix()]; twice {
			r.wrong(at, "%s is %s already, line %d", i.Prefix(), first, r.of(first).Line)
		}
		ids[i.Prefix()] = at
		r.out.Instances = append(r.out.Instances, i)
	}
}

// check has policy say what is wrong with the endpoint, and gives it the file's
// names.
func (r *reader) check(path string, i *Instance) bool {
	addr, ok := i.Addr()
	if !ok {
		addr = netip.AddrFrom4([4]byte{127, 0, 0, 1}) // not known yet
	}
	e := i.EndpointAt(addr)
	problems := e.Validate()
	for _, p := range problems {
		key, _, _ := strings.Cut(p.Path, ".")
		switch key {
		case "health_check_path":
			key = "health_check"
		case "id", "ip", "port", "protocol":
			key = "url"
		}
		r.wrong(join(path, key), "%s", p.Message)
	}
	return len(problems) == 0
}

func checkOf(protocol string) string {
	if protocol == "grpc" {
		return "gRPC's health service"
	}
	return "a TCP connection"
}

// schemes are what an instance's url may begin with: the protocol each stands for
// and its port.
var schemes = map[string]struct {
	protocol string
	port     int
}{
	"http": {"http", 80}, "https": {"tls", 443}, "http2": {"http2", 0}, "grpc": {"grpc", 0}, "tcp": {"tcp", 0}, "tls": {"tls", 0},
}

const urlMeant = "meant is http://HOST:PORT (or https, http2, grpc, tcp, tls)"

func (r *reader) readURL(path string, instance map[string]any, host *string, e *policy.Endpoint) {
	at := join(path, "url")
	text, ok := stringAt(r, path, instance, "url")
	if !ok {
		if _, there := instance["url"]; !there {
			r.wrong(at, "is missing; %s", urlMeant)
		}
		return
	}
	u, err := url.Parse(text)
	if err != nil || u.Opaque != "" || u.Host == "" {
		r.wrong(at, "%q is not a URL; %s", text, urlMeant)
		return
	}
	scheme, ok := schemes[u.Scheme]
	if !ok {
		r.wrong(at, "%q: %q is not known; %s", text, u.Scheme, urlMeant)
		return
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		r.wrong(at, "%q: only host and port are taken: what follows them is each request's own; %s", text, urlMeant)
		return
	}
	e.Protocol, e.Port = scheme.protocol, scheme.port
	if p := u.Port(); p != "" {
		e.Port, _ = strconv.Atoi(p) // url.Parse has seen that it is a number; too large a one is 0 or out of bounds
	}
	if e.Port < 1 || e.Port > 65535 {
		r.wrong(at, "%q: the port is not in 1..65535; %s", text, urlMeant)
		return
	}
	*host = strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
	if _, err := netip.ParseAddr(*host); err != nil && !isHostName(*host) {
		r.wrong(at, "%q: %q is neither an IP address nor a host name", text, u.Hostname())
	}
}

// isHostName takes underscores too: names that container engines give have them.
func isHostName(s string) bool {
	if len(s) > 200 { // with the port and an address it is an endpoint's id
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return true
}

func (r *reader) readLabels(path string, v any, e *policy.Endpoint) {
	labels, ok := r.object(path, v)
	if !ok {
		return
	}
	for _, key := range sortedKeys(labels) {
		text, ok := labels[key].(string)
		if !ok {
			r.wrong(join(path, key), "%s is not a string; put it in quotes", show(labels[key]))
			continue
		}
		e.Labels[key] = text
	}
}

// object takes a value that has to be one.
func (r *reader) object(path string, v any) (map[string]any, bool) {
	m, ok := v.(map[string]any)
	switch {
	case v == nil:
		r.wrong(path, "is empty; give it a value or leave it out")
	case !ok:
		r.wrong(path, "%s is not an object", show(v))
	}
	return m, ok
}

func stringAt(r *reader, path string, in map[string]any, key string) (string, bool) {
	v, ok := in[key]
	if !ok {
		return "", false
	}
	text, ok := v.(string)
	if !ok {
		r.wrong(join(path, key), "%s is not a string", show(v))
	}
	return text, ok
}

func (r *reader) number(path string, v any) (float64, bool) {
	n, ok := asNumber(v)
	if !ok {
		r.wrong(path, "%s is not a number", show(v))
	}
	return n, ok
}

func asNumber(v any) (float64, bool) {
	n, ok := v.(json.Number)
	if !ok {
		return 0, false
	}
	f, err := n.Float64()
	return f, err == nil
}

func isZero(v any) bool {
	n, ok := asNumber(v)
	return ok && n == 0
}

// positive takes a number that is not to be 0, which elsewhere means "not said".
func (r *reader) positive(path string, in map[string]any, key string, take func(float64)) {
	v, ok := in[key]
	if !ok {
		return
	}
	at := join(path, key)
	if n, ok := r.number(at, v); ok && n == 0 {
		r.wrong(at, "0 is no %s; leave it out for the mesh's", key)
	} else if ok {
		take(n)
	}
}

// whole takes a whole number; of a rate limit 0 would be "not said".
func (r *reader) whole(path string, in map[string]any, key string, take func(int)) {
	v, ok := in[key]
	if !ok {
		return
	}
	at := join(path, key)
	n, ok := asNumber(v)
	switch {
	case !ok || n != math.Trunc(n) || math.Abs(n) > math.MaxInt32:
		r.wrong(at, "%s is not a whole number", show(v))
	case n == 0 && key == "rate_limit":
		r.wrong(at, "0 would let nothing pass; leave it out for no limit of the instance's own")
	default:
		take(int(n))
	}
}

func contains(list []string, s string) bool {
	for _, one := range list {
		if one == s {
			return true
		}
	}
	return false
}

func portText(port int) string { return strconv.Itoa(port) }
