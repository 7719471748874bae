package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
)

func newPolicyCommand(opt *options) *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Make security rules of what was observed, and try changes on it"}
	cmd.AddCommand(newSuggestCommand(opt), newWhatIfCommand(opt))
	return cmd
}

func newSuggestCommand(opt *options) *cobra.Command {
	var namespace string
	var since time.Duration
	cmd := &cobra.Command{
		Use: "suggest", Short: "Suggest the smallest security rules that allow what was observed", Args: cobra.NoArgs,
		Long: "Suggest writes documents that weir apply -f - takes: rules that allow what was seen and\n" +
			"not denied, by caller, destination and method, and nothing else.",
		RunE: runs(opt, func(cmd *cobra.Command, _ []string) error {
			c, err := opt.client()
			if err != nil {
				return err
			}
			list, err := c.Flows(cmd.Context(), since, api.FlowQuery{Direction: "inbound", Verdict: "allowed", Limit: 50_000})
			if err != nil {
				return err
			}
			tellElsewhere(list.Control, list.Elsewhere)
			rules, nameless := suggest(&list, namespace)
			if opt.output == "json" {
				return opt.print(cmd, suggestedDocuments(rules), nil)
			}
			return printSuggested(cmd.OutOrStdout(), &list, rules, nameless)
		}),
	}
	sinceFlag(cmd, &since)
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "only rules for the services of this namespace")
	return cmd
}

func suggest(list *api.FlowList, namespace string) ([]policy.Suggestion, []policy.FlowCount) {
	var flows []policy.FlowCount
	for i := range list.Flows {
		f := &list.Flows[i]
		if namespace == "" || f.Destination.Namespace == namespace {
			flows = append(flows, policy.FlowCount{Flow: f.Policy(), Calls: f.Calls, Errors: f.Errors})
		}
	}
	return policy.Suggest(flows)
}

// ruleDocument is a rule as apply takes it; its id is made of what it does.
type ruleDocument struct {
	Kind string   `json:"kind"`
	Spec ruleSpec `json:"spec"`
}

type ruleSpec struct {
	SourceNamespace      string          `json:"source_namespace"`
	SourceService        string          `json:"source_service"`
	DestinationNamespace string          `json:"destination_namespace"`
	DestinationService   string          `json:"destination_service"`
	AllowedMethods       []string        `json:"allowed_methods"`
	RequiredJWT          bool            `json:"required_jwt,omitempty"`
	MTLSMode             policy.MTLSMode `json:"mtls_mode"`
}

func suggestedDocument(r *policy.SecurityRule) ruleDocument {
	return ruleDocument{"SecurityRule", ruleSpec{
		r.SourceNamespace, r.SourceService, r.DestinationNamespace, r.DestinationService, r.AllowedMethods, r.RequiredJWT, r.MTLSMode,
	}}
}

func suggestedDocuments(rules []policy.Suggestion) []ruleDocument {
	docs := make([]ruleDocument, len(rules))
	for i := range rules {
		docs[i] = suggestedDocument(&rules[i].Rule)
	}
	return docs
}

const (
	flowsInComment = 10
	callsText      = "#   %d calls: %s\n"
)

// printSuggested writes the rules with what they rest on.
func printSuggested(w io.Writer, list *api.FlowList, rules []policy.Suggestion, nameless []policy.FlowCount) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Rules for what was seen since %s and not denied, as the proxies of %s told it.\n", when(list.Since), list.Control)
	fmt.Fprintf(&b, "# What did not happen in that time is not allowed by them.\n")
	if list.LeftOut > 0 {
		fmt.Fprintf(&b, "# Proxies had no room to count %d calls: something may be missing.\n", list.LeftOut)
	}
	if list.More > 0 {
		fmt.Fprintf(&b, "# %d flows, the least frequent, were not looked at: something may be missing.\n", list.More)
	}
	if len(nameless) > 0 {
		fmt.Fprintf(&b, "# Callers without a certificate were allowed too. A rule would let in everybody: there is none for\n")
		for _, f := range nameless {
			fmt.Fprintf(&b, callsText, f.Calls, "("+f.SourceClass+") -> "+f.Destination.String()+" "+what(&f.Flow))
		}
	}
	for i := range rules {
		s := &rules[i]
		b.WriteString("---\n")
		for j := range s.Flows {
			if j == flowsInComment {
				fmt.Fprintf(&b, "#   and %d more\n", len(s.Flows)-j)
				break
			}
			fmt.Fprintf(&b, callsText, s.Flows[j].Calls, what(&s.Flows[j].Flow))
		}
		if err := printYAML(&b, suggestedDocument(&s.Rule)); err != nil {
			return err
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

// what names a flow's request on one line, whatever its client wrote into it.
func what(f *policy.Flow) string {
	if f.Method == "" {
		return fmt.Sprintf("(%s) port %d", f.Protocol, f.Port)
	}
	text := fmt.Sprintf("%s %s", f.Method, f.Path)
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == 0x85 || r == 0x2028 || r == 0x2029 || r == 0xfffd {
			return '?'
		}
		return r
	}, text)
}

func newWhatIfCommand(opt *options) *cobra.Command {
	var files []string
	var since time.Duration
	cmd := &cobra.Command{
		Use: "what-if -f FILE", Short: "Tell which observed calls would be decided otherwise if files were applied", Args: cobra.NoArgs,
		Long: "What-if decides each recorded flow twice, by the rules as they are and as they would be\n" +
			"with the documents, and shows those with another verdict or route. Nothing is stored. It\n" +
			"exits with 1 when something that is allowed would be denied.",
		RunE: runs(opt, func(cmd *cobra.Command, _ []string) error {
			docs, err := readFiles(cmd.InOrStdin(), files)
			if err != nil {
				return err
			}
			c, err := opt.client()
			if err != nil {
				return err
			}
			found, err := c.WhatIf(cmd.Context(), docs, since)
			if err != nil {
				return placed(err, docs)
			}
			tellElsewhere(found.Control, found.Elsewhere)
			if err := opt.print(cmd, found, func(w io.Writer) error { return printWhatIf(w, &found) }); err != nil {
				return err
			}
			if n := broken(found.Changes); n > 0 {
				return fmt.Errorf("%d flows that are allowed would be denied", n)
			}
			return nil
		}),
	}
	filesFlag(cmd, &files)
	sinceFlag(cmd, &since)
	return cmd
}

func broken(changes []api.FlowChange) (n int) {
	for i := range changes {
		if changes[i].Breaks() {
			n++
		}
	}
	return n
}

func printWhatIf(w io.Writer, found *api.WhatIf) error {
	if len(found.Changes) == 0 {
		_, err := fmt.Fprintf(w, "nothing changes for the %d flows since %s\n", found.Flows, when(found.Since))
		return err
	}
	var rows [][]string
	for i := range found.Changes {
		c := &found.Changes[i]
		rows = append(rows, append(append([]string{c.Change}, flowCells(&c.Flow)...), fmt.Sprint(c.Calls), c.Before, c.After))
	}
	if err := table(w, "CHANGE SOURCE DESTINATION METHOD PATH CALLS BEFORE AFTER", rows); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%d of %d flows since %s change; nothing was stored\n", len(found.Changes)+found.More, found.Flows, when(found.Since))
	return err
}
