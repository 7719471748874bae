package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/weir-mesh/weir/test/meshlab"
)

// tally counts answers by service and status.
type tally map[string]map[int]int

func (t tally) add(service string, status int) {
	if t[service] == nil {
		t[service] = map[int]int{}
	}
	t[service][status]++
}

func (t tally) total() int {
	n := 0
	for _, statuses := range t {
		for _, count := range statuses {
			n += count
		}
	}
	return n
}

// answer is one answer as curl printed it.
type answer struct {
	status int
	header http.Header
	body   string
}

// instance is the app that answered; "" when a proxy did.
func (a answer) instance() string { return a.header.Get("X-Instance") }

// call sends requests from a node to a service, by its name, with one curl. path
// may hold a range, "/[1-60]", which makes as many requests one after the other.
func (d *demo) call(ctx context.Context, from *meshlab.Node, service, path string, args ...string) ([]answer, error) {
	answers, err := curl(ctx, from, "http://"+service+path, args...)
	if from == d.frontend {
		for _, a := range answers {
			d.sent.add(service, a.status)
		}
	}
	return answers, err
}

// curl runs curl in a node's namespace. Its own and the machine's settings
// (~/.curlrc, http_proxy) are left out.
func curl(ctx context.Context, from *meshlab.Node, url string, args ...string) ([]answer, error) {
	out, err := from.Output(ctx, "curl", append([]string{"-q", "-sS", "-i", "--raw", "--noproxy", "*", "--max-time", "20", url}, args...)...)
	answers, unread := readAnswers(out)
	return answers, errors.Join(err, unread)
}

// readAnswers reads what `curl -i --raw` printed: the answers, one after the
// other, as they came over the wire.
func readAnswers(out string) ([]answer, error) {
	var answers []answer
	r := bufio.NewReader(strings.NewReader(out))
	for {
		if _, err := r.Peek(1); err != nil {
			return answers, nil
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return answers, fmt.Errorf("answer %d of curl: %w", len(answers)+1, err)
		}
		body, err := io.ReadAll(resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err != nil {
			return answers, fmt.Errorf("answer %d of curl: %w", len(answers)+1, err)
		}
		answers = append(answers, answer{status: resp.StatusCode, header: resp.Header, body: string(body)})
	}
}

// statuses counts answers by status, as text: "58 × 200, 2 × 503".
func statuses(answers []answer) string {
	count := map[int]int{}
	for _, a := range answers {
		count[a.status]++
	}
	var parts []string
	for _, status := range slices.Sorted(maps.Keys(count)) {
		parts = append(parts, fmt.Sprintf("%d × %d", count[status], status))
	}
	if len(parts) == 0 {
		return "no answer"
	}
	return strings.Join(parts, ", ")
}

// instances counts answers by the app that gave them.
func instances(answers []answer) map[string]int {
	count := map[string]int{}
	for _, a := range answers {
		count[a.instance()]++
	}
	return count
}

// counts writes instances as "users-a 20, users-b 20".
func counts(by map[string]int) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(by)) {
		shown := name
		if name == "" {
			shown = "(no app)"
		}
		parts = append(parts, fmt.Sprintf("%s %d", shown, by[name]))
	}
	return strings.Join(parts, ", ")
}

// all200 makes sure that n answers came and all are 200.
func all200(answers []answer, n int, err error) error {
	good := 0
	for _, a := range answers {
		if a.status == http.StatusOK {
			good++
		}
	}
	if good == n && len(answers) == n && err == nil {
		return nil
	}
	return errors.Join(fmt.Errorf("expected %d × 200, saw %s", n, statuses(answers)), err)
}

// refused makes sure that one answer came, a 403 with a reason of weir's.
func refused(answers []answer, reason string, err error) error {
	if err == nil && len(answers) == 1 && answers[0].status == http.StatusForbidden && answers[0].header.Get("weir-error") == reason {
		return nil
	}
	seen := statuses(answers)
	if len(answers) > 0 {
		seen += fmt.Sprintf(" with weir-error %q", answers[0].header.Get("weir-error"))
	}
	return errors.Join(fmt.Errorf("expected 403 with weir-error %q, saw %s", reason, seen), err)
}

// atoi is for the ports above.
func atoi(port string) int {
	n, err := strconv.Atoi(port)
	if err != nil {
		panic(err) // a constant of this package
	}
	return n
}
