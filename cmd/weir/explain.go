package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
)

// errDenied makes the exit status 1 without a message of its own.
var errDenied = errors.New("denied")

func newExplainCommand(opt *options) *cobra.Command {
	var call api.Call
	var to string
	var headers []string
	cmd := &cobra.Command{
		Use: "explain --from [NAMESPACE/]SERVICE --to [NAMESPACE/]SERVICE[:PORT]", Short: "Tell what becomes of a call, by which rules, and why not otherwise",
		Long: "Tell what becomes of a call, by which rules, and why not otherwise.\n\n" +
			"The rules are asked by the functions that the proxies use. Nothing is sent.\n" +
			"The exit status is 0 if the call is allowed, 1 if it is denied and 2 for an error.",
		Args: cobra.NoArgs,
		RunE: runs(opt, func(cmd *cobra.Command, _ []string) error {
			if err := readCall(&call, to, headers); err != nil {
				return err
			}
			c, err := opt.client()
			if err != nil {
				return &statusError{2, err}
			}
			e, err := c.Explain(cmd.Context(), call)
			if err != nil {
				return &statusError{2, err}
			}
			err = opt.print(cmd, &e, func(w io.Writer) error { return printExplanation(w, &call, &e) })
			if err == nil && !e.Allowed {
				return &statusError{1, errDenied}
			}
			return err
		}),
	}
	f := cmd.Flags()
	f.StringVar(&call.From, "from", "", "who calls")
	f.StringVar(&to, "to", "", "which service, and by which port")
	f.StringVarP(&call.Method, "method", "X", "GET", "the request's method; \"\" is a connection that is not HTTP")
	f.StringVar(&call.Path, "path", "/", "its path, query included")
	f.StringVar(&call.Host, "host", "", "its Host (default the service's name)")
	f.StringArrayVarP(&headers, "header", "H", nil, "a header, \"Name: value\"; may be given several times")
	f.StringVar(&call.JWT, "jwt", "", "its bearer token, whose signature is not checked here, or the claims as a JSON object; @FILE reads it from a file")
	return cmd
}

// readCall completes a call by what the flags say in another form.
func readCall(call *api.Call, to string, headers []string) error {
	if call.From == "" || to == "" {
		return usagef("--from and --to are needed, as in --from default/frontend --to default/user-service:8001")
	}
	service, port, ok := strings.Cut(to, ":")
	if call.To = service; ok {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return usagef("--to %s: %q is not a port", to, port)
		}
		call.Port = int(n)
	}
	call.Headers = map[string][]string{}
	for _, h := range headers {
		name, value, ok := strings.Cut(h, ":")
		if !ok {
			return usagef("--header %q is not \"Name: value\"", h)
		}
		call.Headers[name] = append(call.Headers[name], strings.TrimSpace(value))
	}
	if file, ok := strings.CutPrefix(call.JWT, "@"); ok {
		b, err := os.ReadFile(file)
		if err != nil {
			return usagef("--jwt: %v", err)
		}
		call.JWT = strings.TrimSpace(string(b))
	}
	return nil
}

// printExplanation writes the decision first and then what led to it.
func printExplanation(w io.Writer, call *api.Call, e *policy.Explanation) error {
	verdict := "allowed"
	if !e.Allowed {
		verdict = "denied"
	}
	what := cmp.Or(call.Method, "connection")
	if call.Method != "" {
		what += " " + call.Path
	}
	lines := []string{
		fmt.Sprintf("%s: %s from %s to %s", verdict, what, call.From, call.To),
		fmt.Sprintf("  because     %s (%s)", e.Why, e.Reason),
		"  route       " + routeLine(&e.Route),
		"  encryption  " + e.Encryption.Kind + ": " + e.Encryption.Why,
	}
	if len(e.Audits) > 0 {
		lines = append(lines, "  audited by  "+strings.Join(e.Audits, ", "))
	}
	if _, err := fmt.Fprintln(w, strings.Join(lines, "\n")); err != nil {
		return err
	}
	var endpoints [][]string
	for _, one := range e.Endpoints {
		in := "out"
		if one.In {
			in = "in"
		}
		endpoints = append(endpoints, []string{one.ID, one.Address, in, one.Why})
	}
	for _, list := range []struct {
		header string
		rows   [][]string
	}{
		{"ENDPOINT ADDRESS SET WHY", endpoints},
		{"SECURITY-RULE DOES SAID", consideredRows(e.Security)},
		{"TRAFFIC-RULE LEADS-TO SAID", consideredRows(e.Route.Rules)},
	} {
		if len(list.rows) == 0 {
			continue
		}
		if _, err := fmt.Fprintln(w); err != nil {
			return err
		}
		if err := table(w, list.header, list.rows); err != nil {
			return err
		}
	}
	return nil
}

func routeLine(r *policy.RouteExplained) string {
	line := r.Service
	if r.Answer != "" {
		line = "answered with " + r.Answer
	} else if r.Subset != "" {
		line += "[" + r.Subset + "]"
	}
	if r.Rule == "" {
		return line + ", by no traffic rule"
	}
	return line + ", by traffic rule " + r.Rule
}

func consideredRows(all []policy.Considered) (rows [][]string) {
	for _, c := range all {
		rows = append(rows, []string{c.Rule, c.Does, c.Why})
	}
	return rows
}
