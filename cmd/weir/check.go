package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-mesh/weir/controlplane/api"
)

func newCheckCommand(opt *options) *cobra.Command {
	var since time.Duration
	cmd := &cobra.Command{
		Use: "check", Short: "Tell whether services speak encrypted, and what needs attention", Args: cobra.NoArgs,
		Long: "Check lists each pair of services that talked or that rules allow to talk: whether what\n" +
			"they say is encrypted, and why. It exits with 1 when something needs attention: calls in\n" +
			"plain text that nobody asked for, endpoints without a proxy, certificates that end soon,\n" +
			"proxies that refused a change or are of another version than the control plane.",
		RunE: runs(opt, func(cmd *cobra.Command, _ []string) error {
			c, err := opt.client()
			if err != nil {
				return err
			}
			list, err := c.Pairs(cmd.Context(), since)
			if err != nil {
				return err
			}
			tellElsewhere(list.Control, list.Elsewhere)
			if err := opt.print(cmd, list, func(w io.Writer) error { return printPairs(w, &list) }); err != nil {
				return err
			}
			if n := attention(&list); n > 0 {
				return fmt.Errorf("%d things need attention", n)
			}
			return nil
		}),
	}
	sinceFlag(cmd, &since)
	return cmd
}

func attention(list *api.PairList) int {
	n := len(list.Attention)
	for i := range list.Pairs {
		n += len(list.Pairs[i].Attention)
	}
	return n
}

func printPairs(w io.Writer, list *api.PairList) error {
	var rows [][]string
	var lines []string
	for i := range list.Pairs {
		p := &list.Pairs[i]
		rows = append(rows, []string{p.Source.String(), p.Destination.String(), p.Encrypted, strings.Join(p.Why, "; "),
			strconv.FormatUint(p.Calls, 10), strconv.FormatUint(p.Plaintext, 10), strconv.FormatUint(p.Denied, 10), when(p.CertEnds)})
		for _, text := range p.Attention {
			lines = append(lines, fmt.Sprintf("! %s -> %s: %s", p.Source, p.Destination, text))
		}
	}
	if err := table(w, "SOURCE DESTINATION ENCRYPTED WHY CALLS PLAINTEXT DENIED CERTIFICATE-ENDS", rows); err != nil {
		return err
	}
	if list.LeftOut > 0 {
		lines = append(lines, fmt.Sprintf("%d more pairs that rules allow are not shown", list.LeftOut))
	}
	for _, text := range list.Attention {
		lines = append(lines, "! "+text)
	}
	for _, line := range lines {
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}
