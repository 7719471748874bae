package meshfile

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/weir-mesh/weir/policy"
)

var update = flag.Bool("update", false, "write the golden files anew")

func read(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// golden compares with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want := string(read(t, name)); got != want {
		t.Errorf("%s: got\n%s\nwant\n%s\n(go test -update writes it)", path, got, want)
	}
}

func TestTheSeedsFileLoadsAsItStands(t *testing.T) {
	f, err := Parse("mesh-config.yml", read(t, "mesh-config.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for i := range f.Instances {
		a, ok := f.Instances[i].Addr()
		if !ok {
			t.Fatalf("%s has no address", f.Instances[i].Host)
		}
		e, _ := json.Marshal(f.Instances[i].EndpointAt(a))
		fmt.Fprintf(&b, "%s\n", e)
	}
	merged, err := policy.DefaultSettings().Merge(f.Settings)
	if err != nil {
		t.Fatal(err)
	}
	shown, err := merged.Effective()
	if err != nil {
		t.Fatal(err)
	}
	settings, _ := json.MarshalIndent(shown, "", "  ")
	fmt.Fprintf(&b, "%s\n%s\n", settings, f.Warnings.Error())
	golden(t, "mesh-config.golden", b.String())
	if merged.Security.JWTSecret != "your-secret-key" {
		t.Errorf("the secret is %q", merged.Security.JWTSecret)
	}
}

// Each key of an instance, and what the traffic to it becomes.
func TestWhatAnInstanceSaysBecomesTraffic(t *testing.T) {
	f, err := Parse("f", []byte(`
mesh:
  services:
    pay.shop:
      strategy: weighted
      instances:
        - {url: "http://10.0.0.1:8001", health_check: /up, circuit_timeout: 2.5, retry_count: 4, retry_delay: 0, rate_limit: 7, timeout: 1.5, weight: 3, labels: {version: v2}}
        - {url: "https://[fd00::1]", circuit_timeout: 9}
        - {url: "grpc://Pay_2.Internal.:9000"}
  security: {rate_limiting: {window: 10}}
`))
	if err != nil {
		t.Fatal(err)
	}
	merged, err := policy.DefaultSettings().Merge(f.Settings)
	if err != nil {
		t.Fatal(err)
	}
	tr := merged.TrafficFor(policy.ServiceName{Namespace: "shop", Name: "pay"})
	if tr.Strategy != "weighted" || tr.Timeout != 1500*time.Millisecond || tr.Retry != (policy.Retry{Attempts: 4}) || tr.RateLimit.Limit != 0 {
		t.Errorf("traffic is %+v", tr)
	}
	var got []string
	for i := range f.Instances {
		inst := &f.Instances[i]
		a, fixed := inst.Addr()
		if !fixed {
			a = netip.MustParseAddr("10.9.9.9")
		}
		e := inst.EndpointAt(a)
		if p := e.Validate(); len(p) > 0 {
			t.Errorf("%s: %v", e.ID, p)
		}
		got = append(got, fmt.Sprint(e.Namespace, "/", e.ServiceName, " ", e.ID, " ", e.IP, " ", e.Port, " ", e.Protocol, " ", e.HealthCheckPath, " ", e.Weight, e.Labels, e.CircuitTimeout, e.RateLimit))
	}
	want := []string{
		"shop/pay 10.0.0.1:8001 10.0.0.1 8001 http /up 3 map[version:v2] 2.5 7",
		"shop/pay [fd00::1]:443 fd00::1 443 tls /health 100 map[] 9 0",
		"shop/pay pay_2.internal:9000@10.9.9.9 10.9.9.9 9000 grpc /health 100 map[] 0 0",
	}
	if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// What weir get config shows can be put below "mesh:" and means what it shows.
func TestWhatGetConfigShowsIsAMeshFile(t *testing.T) {
	set, err := policy.DefaultSettings().Merge([]byte(`{"global_timeout": 7, "services": {"pay.shop": {"strategy": "random", "retry_delay": 0, "rate_limit": {"limit": 3}}}}`))
	if err != nil {
		t.Fatal(err)
	}
	shown, err := set.Effective()
	if err != nil {
		t.Fatal(err)
	}
	text, err := yaml.Marshal(map[string]any{"mesh": shown})
	if err != nil {
		t.Fatal(err)
	}
	f, err := Parse("f", text)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	again, err := policy.DefaultSettings().Merge(f.Settings)
	if err != nil {
		t.Fatal(err)
	}
	name := policy.ServiceName{Namespace: "shop", Name: "pay"}
	if a, b := again.TrafficFor(name), set.TrafficFor(name); !reflect.DeepEqual(a, b) {
		t.Errorf("got  %+v\nwant %+v", a, b)
	}
}

func TestAServiceMayHaveSettingsAndNoInstances(t *testing.T) {
	f, err := Parse("f", []byte("mesh:\n  services:\n    users:\n      rate_limit: {limit: 5, key: source}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got := string(f.Settings); got != `{"services":{"default/users":{"rate_limit":{"key":"source","limit":5}}}}` || fmt.Sprint(f.Services) != "[default/users]" {
		t.Errorf("%s, %v", got, f.Services)
	}
}

func TestAnchorsAndMergesAreTaken(t *testing.T) {
	f, err := Parse("f", []byte("mesh:\n  services:\n    users:\n      instances:\n        - &first\n          url: http://10.0.0.1:1\n          timeout: 3\n        - <<: *first\n          url: http://10.0.0.2:1\n"))
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Instances) != 2 || f.Instances[1].Host != "10.0.0.2" {
		t.Errorf("%+v", f.Instances)
	}
}

// TestWhatIsWrongIsNamedWithItsPlace: every file of testdata/bad, and all that is
// said about them.
func TestWhatIsWrongIsNamedWithItsPlace(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yml")
	if err != nil || len(files) < 10 {
		t.Fatalf("%v, %v", files, err)
	}
	var b strings.Builder
	for _, path := range files {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Parse(filepath.Base(path), data)
		if err == nil {
			t.Errorf("%s was taken", path)
			continue
		}
		fmt.Fprintf(&b, "%v\n\n", err)
	}
	golden(t, "bad.golden", b.String())
}

func TestAMeshFileIsToldFromDocuments(t *testing.T) {
	for text, want := range map[string]bool{
		"mesh:\n  services: {}\n":        true,
		"# mesh\n---\nmesh: {}\n":        true,
		`{"mesh": {}}`:                   true,
		"mesh:\n  services:\n   - [\n":   true,
		"kind: Config\nspec: {}\n":       false,
		"kind: Config\n---\nkind: End\n": false,
		"":                               false,
		"- mesh: 1\n":                    false,
	} {
		if got := Is([]byte(text)); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

// FuzzParse: a file is refused with a place in it, or amounts to settings and
// endpoints that the rest of the control plane takes; and the same text gives the
// same.
func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob("testdata/bad/*.yml")
	for _, path := range append(files, "testdata/mesh-config.yml") {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		Is(data)
		file, err := Parse("f", data)
		again, errAgain := Parse("f", data)
		if fmt.Sprint(err) != fmt.Sprint(errAgain) {
			t.Fatalf("%v, then %v", err, errAgain)
		}
		if err != nil {
			problems, ok := err.(Problems)
			if !ok || len(problems) == 0 {
				t.Fatalf("%T: %v", err, err)
			}
			for _, p := range problems {
				// To YAML a lone carriage return ends a line too.
				if lines := strings.Count(string(data), "\n") + strings.Count(string(data), "\r") + 1; p.Text == "" || p.At.Line > lines {
					t.Fatalf("%q in a file of %d lines", p, lines)
				}
			}
			return
		}
		if string(file.Settings) != string(again.Settings) {
			t.Fatalf("%s, then %s", file.Settings, again.Settings)
		}
		if _, err := policy.DefaultSettings().Merge(file.Settings); err != nil {
			t.Fatalf("%s: %v", file.Settings, err)
		}
		ids := map[string]bool{}
		for i := range file.Instances {
			inst := &file.Instances[i]
			a, ok := inst.Addr()
			if !ok {
				a = netip.MustParseAddr("2001:db8::1")
			}
			e := inst.EndpointAt(a)
			key := e.Service().String() + " " + e.ID
			if p := e.Validate(); len(p) > 0 || ids[key] || !strings.HasPrefix(e.ID, inst.Prefix()) {
				t.Fatalf("%s: %v, twice: %v", key, p, ids[key])
			}
			ids[key] = true
		}
	})
}
