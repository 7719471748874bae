package main

import (
	"cmp"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weir-mesh/weir/controlplane/api"
)

func newHistoryCommand(opt *options) *cobra.Command {
	var limit int
	var before int64
	cmd := &cobra.Command{
		Use: "history [REVISION]", Short: "Show who changed what, or one change whole", Args: cobra.MaximumNArgs(1),
		RunE: runs(opt, func(cmd *cobra.Command, args []string) error {
			if limit < 1 {
				return usagef("--limit %d is not a number of changes", limit)
			}
			revisions, err := readRevisions(args)
			if err != nil {
				return err
			}
			c, err := opt.client()
			if err != nil {
				return err
			}
			if len(revisions) == 1 {
				return showRevision(cmd, opt, c, revisions[0])
			}
			list, err := c.History(cmd.Context(), before, limit)
			if err != nil {
				return err
			}
			return opt.print(cmd, list, func(w io.Writer) error { return printHistory(w, list) })
		}),
	}
	cmd.Flags().IntVar(&limit, "limit", 20, "how many changes, the newest first")
	cmd.Flags().Int64Var(&before, "before", 0, "only changes before this revision")
	return cmd
}

func showRevision(cmd *cobra.Command, opt *options, c *api.Client, revision int64) error {
	r, err := c.Revision(cmd.Context(), revision)
	if err != nil {
		return err
	}
	return opt.print(cmd, r, func(w io.Writer) error {
		if _, err := fmt.Fprintf(w, "revision %d, %s, by %s\n", r.Revision, when(r.Time), by(&r)); err != nil {
			return err
		}
		return printChanges(w, r.Changes)
	})
}

func by(r *api.Revision) string { return strings.TrimSpace(r.Who + " " + r.Name) }

func printHistory(w io.Writer, list []api.Revision) error {
	var rows [][]string
	for i := range list {
		r := &list[i]
		var what []string
		for j := range min(3, len(r.Changes)) {
			what = append(what, r.Changes[j].Action+" "+r.Changes[j].Ref().String())
		}
		if r.Total > len(what) {
			what = append(what, "…")
		}
		rows = append(rows, []string{strconv.FormatInt(r.Revision, 10), when(r.Time), by(r), strconv.Itoa(r.Total), strings.Join(what, ", ")})
	}
	return table(w, "REVISION WHEN WHO CHANGES WHAT", rows)
}

func readRevisions(args []string) ([]int64, error) {
	var out []int64
	for _, a := range args {
		n, err := strconv.ParseInt(a, 10, 64)
		if err != nil || n < 0 {
			return nil, usagef("%q is not a revision; weir history lists them", a)
		}
		out = append(out, n)
	}
	return out, nil
}

func newDiffCommand(opt *options) *cobra.Command {
	return &cobra.Command{
		Use: "diff REVISION [REVISION]", Short: "Show what differs between the states after two revisions, or after one and now", Args: cobra.RangeArgs(1, 2),
		RunE: runs(opt, func(cmd *cobra.Command, args []string) error {
			revisions, err := readRevisions(args)
			if err != nil {
				return err
			}
			c, err := opt.client()
			if err != nil {
				return err
			}
			changes, err := c.Diff(cmd.Context(), revisions[0], append(revisions, 0)[1])
			if err != nil {
				return err
			}
			return opt.print(cmd, changes, func(w io.Writer) error { return printChanges(w, changes) })
		}),
	}
}

func newRollbackCommand(opt *options) *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use: "rollback REVISION", Short: "Make rules, settings and registered endpoints what they were after a revision", Args: cobra.ExactArgs(1),
		Long: "Rollback makes rules, settings and registered endpoints what they were after a revision, all of them or none.\n" +
			"It is a change itself, which can be rolled back. Endpoints of proxies are left alone. To take back the change\n" +
			"that is revision 57, roll back to 56.",
		RunE: runs(opt, func(cmd *cobra.Command, args []string) error {
			revisions, err := readRevisions(args)
			if err != nil {
				return err
			}
			c, err := opt.client()
			if err != nil {
				return err
			}
			done, err := c.Rollback(cmd.Context(), revisions[0], dryRun)
			if err != nil {
				return err
			}
			return opt.print(cmd, done, func(w io.Writer) error { return printRollback(w, &done) })
		}),
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "show what would change and which proxies would be told; store nothing")
	return cmd
}

func printRollback(w io.Writer, done *api.Stored) error {
	if done.DryRun {
		return printForetold(w, done)
	}
	if err := printChanges(w, done.Changes); err != nil || done.Revision == 0 {
		return err
	}
	_, err := fmt.Fprintf(w, "%s, revision %d\n", cmp.Or(done.Status, "done"), done.Revision)
	return err
}
