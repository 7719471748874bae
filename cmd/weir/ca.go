package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
)

func newCACommand(opt *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "ca COMMAND", Short: "Show the certificate authority, and rotate its root", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return usagef("a command is missing: show, status or rotate") },
	}
	cmd.AddCommand(newCAShowCommand(opt), newCAStatusCommand(opt), newCARotateCommand(opt))
	return cmd
}

func newCAShowCommand(opt *options) *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "Show the certificates of the authority: fingerprints and when they end", Args: cobra.NoArgs,
		RunE: runs(opt, func(cmd *cobra.Command, _ []string) error {
			c, err := opt.client()
			if err != nil {
				return err
			}
			ca, err := c.CA(cmd.Context())
			if err != nil {
				return err
			}
			return opt.print(cmd, ca, func(w io.Writer) error { return writeCA(w, &ca) })
		}),
	}
}

func writeCA(w io.Writer, ca *api.CA) error {
	fmt.Fprintf(w, "trust domain %s\n", ca.TrustDomain) // an error stays for the table
	if f := ca.Files; f != nil {
		fmt.Fprintf(w, "files %s: %s, %d changes refused%s\n", f.Path, f.State, f.Refused, after(": ", f.Problem))
	}
	var rows [][]string
	for _, c := range ca.Certificates {
		var is []string
		for word, yes := range map[string]bool{"signs": c.Signs, "trusted": c.Trusted} {
			if yes {
				is = append(is, word)
			}
		}
		if len(is) == 2 {
			is = []string{"signs", "trusted"}
		}
		if c.Attention {
			is = append(is, "ends soon")
		}
		rows = append(rows, []string{c.Kind, c.Name, c.Fingerprint, when(c.Expires), strings.Join(is, ", ")})
	}
	return table(w, "KIND NAME FINGERPRINT EXPIRES IS", rows)
}

func after(before, text string) string {
	if text == "" {
		return ""
	}
	return before + text
}

// watchEvery is how often a rotation is looked at.
const watchEvery = time.Second

func newCAStatusCommand(opt *options) *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use: "status", Short: "Show how far a rotation of the root has come", Args: cobra.NoArgs,
		RunE: runs(opt, func(cmd *cobra.Command, _ []string) error {
			c, err := opt.client()
			if err != nil {
				return err
			}
			if watch {
				return watchRotation(cmd.Context(), c, cmd.OutOrStdout(), "")
			}
			ca, err := c.CA(cmd.Context())
			if err != nil {
				return err
			}
			return opt.print(cmd, ca.Rotation, func(w io.Writer) error {
				_, err := fmt.Fprint(w, rotationText(ca.Rotation))
				return err
			})
		}),
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show each step, until the rotation is over")
	return cmd
}

func newCARotateCommand(opt *options) *cobra.Command {
	var force, abort, noWait bool
	cmd := &cobra.Command{
		Use: "rotate", Short: "Replace the root: trust old and new, have all certificates issued anew, drop the old", Args: cobra.NoArgs,
		Long: "Replace the root: by a new one of the mesh's own, or by that of --ca-cert where it stands under another.\n" +
			"The control planes walk the stages by themselves: trust (all proxies learn to trust the new root), reissue (the new\n" +
			"root signs and all renew), done (the old is trusted no more). None is left while a proxy has not followed. What\n" +
			"this command shows goes on without it; ended, it is taken up again by: weir ca status -w",
		RunE: runs(opt, func(cmd *cobra.Command, _ []string) error {
			c, err := opt.client()
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			switch {
			case abort:
				if err := c.AbortRotation(cmd.Context()); err != nil {
					return err
				}
			case force:
				left, err := c.GoOn(cmd.Context())
				if err != nil {
					return err
				}
				for _, p := range left {
					fmt.Fprintf(w, "left behind: %s: %s; %s\n", p.ID, p.Reason, p.Breaks)
				}
			default:
				if err := c.Rotate(cmd.Context()); err != nil {
					return err
				}
			}
			if noWait {
				return nil
			}
			return watchRotation(cmd.Context(), c, w, "")
		}),
	}
	cmd.Flags().BoolVar(&force, "force", false, "go on to the next stage without the proxies that have not followed, and say what breaks")
	cmd.Flags().BoolVar(&abort, "abort", false, "take the rotation back, before the old root is dropped")
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "do not wait for its end")
	cmd.MarkFlagsMutuallyExclusive("force", "abort")
	return cmd
}

// watchRotation shows each step until the rotation is over. A control plane that is
// away for a while is waited for: another, or the same one later, goes on.
func watchRotation(ctx context.Context, c *api.Client, w io.Writer, last string) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		ca, err := c.CA(ctx)
		text := rotationText(ca.Rotation)
		if err != nil {
			text = fmt.Sprintf("%v; waiting\n", err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if text != last {
			if _, err := fmt.Fprint(w, text); err != nil {
				return err
			}
			last = text
		}
		if r := ca.Rotation; err == nil && (r == nil || r.Stage == policy.StageDone || r.Stage == policy.StageAborted) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// stageNumbers say how far a stage is.
var stageNumbers = map[string]string{
	policy.StageTrust:   "1 of 3, trust: old and new root are trusted, the old signs",
	policy.StageReissue: "2 of 3, reissue: the new root signs, all renew their certificates",
	policy.StageDone:    "3 of 3, done: the old root is trusted no more",
	policy.StageAborted: "aborted: the new root is trusted no more",
}

func rotationText(r *api.RotationView) string {
	if r == nil {
		return "the root was never rotated\n"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "rotation %d, stage %s, since %s\n", r.Number, stageNumbers[r.Stage], when(r.Since))
	if r.Stage == policy.StageTrust || r.Stage == policy.StageReissue {
		fmt.Fprintf(&b, "  %d of %d proxies have followed\n", r.Followed, r.Proxies)
	}
	for _, p := range r.Behind {
		fmt.Fprintf(&b, "  waits for %s (%s/%s): it %s\n", p.ID, p.Namespace, p.ServiceName, p.Reason)
	}
	for _, id := range r.Left {
		fmt.Fprintf(&b, "  left behind: %s\n", id)
	}
	return b.String()
}
