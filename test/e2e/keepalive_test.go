package e2e

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weir-mesh/weir/test/meshlab"
)

// TestAServerWithAShortKeepAliveLosesAndDoublesNothing: nginx closes a connection
// after a second without a request. POSTs come at about that pace, through its proxy
// alone and through two.
func TestAServerWithAShortKeepAliveLosesAndDoublesNothing(t *testing.T) {
	t.Parallel()
	m := start(t)
	set(t, m, `{"mtls_mode":"permissive"}`)
	data, outside := bare(t, m, "data"), bare(t, m, "outside")
	log := filepath.Join(m.Dir, "posts")
	nginx(t, m, data, 8001, fmt.Sprintf(`log_format uri "$request_method $request_uri";
  server { listen 8001; keepalive_timeout 1s; access_log %s uri; location / { return 200 "ok"; } }`, log))
	enter(t, m, data, meshlab.Workload{Host: "data", Service: "data", Ports: []string{"8001/http"}})
	front := join(t, m, meshlab.Workload{Host: "front", Service: "frontend"})
	r := allMethods("*", "data")
	r.SourceNamespace = "*"
	if _, err := m.API.AddSecurityRule(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	ways := map[string]*meshlab.Node{"data:8001": front, data.Join(8001): outside}
	for to, from := range ways {
		await(t, m, "the rules", func() error {
			out, err := from.Output(t.Context(), "curl", "-sS", "--max-time", "5", "http://"+to+"/")
			if err == nil && out != "ok" {
				err = fmt.Errorf("%s", out)
			}
			return err
		})
	}
	var sent atomic.Int64
	var all sync.WaitGroup
	end := time.Now().Add(8 * time.Second)
	for to, from := range ways {
		c := &http.Client{Transport: &http.Transport{DialContext: from.DialContext, MaxIdleConnsPerHost: 100}, Timeout: 30 * time.Second}
		t.Cleanup(c.CloseIdleConnections)
		for range 12 {
			all.Go(func() {
				for time.Now().Before(end) {
					n := sent.Add(1)
					resp, err := c.Post(fmt.Sprintf("http://%s/%d", to, n), "text/plain", strings.NewReader("once"))
					if err != nil {
						t.Errorf("%s: %v", to, err)
						continue
					}
					body, _ := io.ReadAll(resp.Body)
					_ = resp.Body.Close()
					if resp.StatusCode != 200 {
						t.Errorf("%s: %d %s", to, resp.StatusCode, body)
					}
					time.Sleep(500*time.Millisecond + time.Duration(rand.Int64N(int64(time.Second))))
				}
			})
		}
	}
	all.Wait()
	read, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	for n := range sent.Load() {
		if got := strings.Count(string(read), fmt.Sprintf("POST /%d\n", n+1)); got != 1 {
			t.Errorf("POST /%d arrived %d times", n+1, got)
		}
	}
	t.Logf("%d POSTs", sent.Load())
}
