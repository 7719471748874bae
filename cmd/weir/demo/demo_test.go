package demo

import (
	"bytes"
	"errors"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestAnswersOfCurlAreReadOneAfterTheOther(t *testing.T) {
	const out = "HTTP/1.1 200 OK\r\nX-Instance: users-a\r\nContent-Length: 6\r\n\r\nhello\n" +
		"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 60\r\nContent-Length: 0\r\n\r\n" +
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Instance: users-b\r\n\r\n5\r\nhello\r\n0\r\n\r\n" +
		"HTTP/1.1 204 No Content\r\n\r\n"
	answers, err := readAnswers(out)
	if err != nil || len(answers) != 4 {
		t.Fatalf("%d answers, %v", len(answers), err)
	}
	if got := statuses(answers); got != "2 × 200, 1 × 204, 1 × 429" {
		t.Error(got)
	}
	if got := counts(instances(answers)); got != "(no app) 2, users-a 1, users-b 1" {
		t.Error(got)
	}
	if answers[2].body != "hello" || answers[1].header.Get("Retry-After") != "60" {
		t.Errorf("%+v", answers)
	}
}

func TestBrokenAnswersAreNotTakenForGood(t *testing.T) {
	for _, out := range []string{"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhel", "hello", "HTTP/1.1 200 OK\r\n"} {
		if answers, err := readAnswers(out); err == nil {
			t.Errorf("%q was read as %+v", out, answers)
		}
	}
}

func TestAClaimHoldsOnlyIfAllOfItWasSeen(t *testing.T) {
	ok := answer{status: 200}
	no := answer{status: 403, header: http.Header{"Weir-Error": {"no-rule"}}}
	failed := errors.New("curl: exit status 7")
	for name, tc := range map[string]struct {
		err  error
		want string // "" holds
	}{
		"all came":               {all200([]answer{ok, ok}, 2, nil), ""},
		"one is missing":         {all200([]answer{ok}, 2, nil), "expected 2 × 200, saw 1 × 200"},
		"one too many":           {all200([]answer{ok, ok, no}, 2, nil), "expected 2 × 200, saw 2 × 200, 1 × 403"},
		"curl failed after them": {all200([]answer{ok}, 1, failed), "expected 1 × 200, saw 1 × 200\ncurl: exit status 7"},
		"none came":              {all200(nil, 1, failed), "expected 1 × 200, saw no answer\ncurl: exit status 7"},
		"refused as said":        {refused([]answer{no}, "no-rule", nil), ""},
		"another reason":         {refused([]answer{no}, "method", nil), `expected 403 with weir-error "method", saw 1 × 403 with weir-error "no-rule"`},
		"not refused":            {refused([]answer{ok}, "no-rule", nil), `expected 403 with weir-error "no-rule", saw 1 × 200 with weir-error ""`},
		"nobody answered":        {refused(nil, "no-rule", failed), "expected 403 with weir-error \"no-rule\", saw no answer\ncurl: exit status 7"},
	} {
		got := ""
		if tc.err != nil {
			got = tc.err.Error()
		}
		if got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

func TestMetricsAreComparedByServiceAndStatus(t *testing.T) {
	const text = `# HELP weir_requests_total Requests
weir_requests_total{code="200",direction="outbound",namespace="default",service="user-service"} 60
weir_requests_total{code="429",direction="outbound",namespace="default",service="user-service"} 1
weir_requests_total{code="200",direction="inbound",namespace="default",service="frontend"} 7
weir_requests_total_created{code="200",direction="outbound",service="x"} 1e9
weir_bytes_total{direction="outbound",service="user-service"} 5
`
	counted := outboundCounts(text)
	if want := (tally{"user-service": {200: 60, 429: 1}}); !reflect.DeepEqual(counted, want) {
		t.Fatalf("%v", counted)
	}
	sent := tally{}
	for range 60 {
		sent.add("user-service", 200)
	}
	if err := sent.compare(counted); err == nil {
		t.Error("one that was counted and not sent went unnoticed")
	}
	sent.add("user-service", 429)
	if err := sent.compare(counted); err != nil || sent.total() != 61 {
		t.Error(sent.total(), err)
	}
	sent.add("order-service", 200)
	if err := sent.compare(counted); err == nil {
		t.Error("one that was sent and not counted went unnoticed")
	}
}

func TestNginxIsGivenOnlyDirectoriesOfItsModules(t *testing.T) {
	conf := (&apps{temps: []string{"proxy", "uwsgi"}}).nginxConf("/demo/dir", "users-a", "v1")
	for _, want := range []string{"\tproxy_temp_path /demo/dir/temp-proxy;\n\tuwsgi_temp_path /demo/dir/temp-uwsgi;\n", "listen 8001;", "if (-f /demo/dir/fail)", "X-Instance users-a always;"} {
		if !strings.Contains(conf, want) {
			t.Errorf("%q is missing in\n%s", want, conf)
		}
	}
	for _, unwanted := range []string{"scgi", "fastcgi", "TEMPS", "DIR", "INSTANCE", "VERSION", "PORT"} {
		if strings.Contains(conf, unwanted) {
			t.Errorf("%q is in\n%s", unwanted, conf)
		}
	}
}

func TestTheReportSaysOkOrFailAndCounts(t *testing.T) {
	t.Setenv("LANG", "C.UTF-8")
	var b bytes.Buffer
	r := newReport(&b) // no terminal: no colour, no signs
	r.claim("balancing", "60 requests", nil)
	if err := r.summary(true, 1500*time.Millisecond); err != nil {
		t.Error(err)
	}
	r.claim("rate limit", "", errors.New("expected 429\nsaw 200"))
	if err := r.summary(false, 2*time.Second); !errors.Is(err, errClaims) {
		t.Errorf("%v", err)
	}
	want := "ok   balancing            60 requests\n\n1 claims, all hold, 1.5 s\n" +
		"FAIL rate limit           expected 429\n     saw 200\n\n1 of 2 claims do not hold, 2.0 s\n"
	if b.String() != want {
		t.Errorf("%q", b.String())
	}
}

func TestTheLocaleDecidesOnSigns(t *testing.T) {
	for _, tc := range []struct {
		all, ctype, lang string
		want             bool
	}{
		{"", "", "en_GB.UTF-8", true}, {"", "", "C.utf8", true}, {"C", "", "en_GB.UTF-8", false},
		{"", "POSIX", "en_GB.UTF-8", false}, {"", "", "", false},
	} {
		t.Setenv("LC_ALL", tc.all)
		t.Setenv("LC_CTYPE", tc.ctype)
		t.Setenv("LANG", tc.lang)
		if speaksUTF8() != tc.want {
			t.Errorf("%+v", tc)
		}
	}
}
