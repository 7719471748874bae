package main

import (
	"crypto/tls"
	"math"
	"slices"
)

// result is all that was measured of one work.
type result struct {
	Work    string              `json:"work"`
	Title   string              `json:"title"`
	Rate    string              `json:"rate_unit"`
	Rounds  []map[string]cell   `json:"rounds"` // by subject
	Failed  map[string][]string `json:"failed,omitempty"`
	Summary []summary           `json:"summary"`
}

// summary is one figure of a work: what each subject needs, and weir beside the
// best of the others.
type summary struct {
	Name     string          `json:"name"`
	Unit     string          `json:"unit"`
	Added    bool            `json:"added,omitempty"` // over no proxy
	Subjects []subjectFigure `json:"subjects"`
	Best     string          `json:"best,omitempty"`  // the peer beside which weir looks worst
	Ratio    float64         `json:"ratio,omitempty"` // the median of the rounds' ratios to it
}

type subjectFigure struct {
	Name           string `json:"name"`
	spread         `json:"figure"`
	Ratio          *spread            `json:"weir_ratio,omitempty"` // weir's figure to this one's, by round
	Rate           float64            `json:"rate,omitempty"`       // median, units per second
	Total          float64            `json:"total,omitempty"`      // median, with client and backend, in the figure's unit
	P50, P99, P999 float64            `json:",omitempty"`           // medians, µs
	Errors         float64            `json:"errors,omitempty"`     // sum
	Curve          string             `json:"curve,omitempty"`      // of handshakes
	Others         float64            `json:"others,omitempty"`     // median, CPUs busy with other work
	Steps          map[string]float64 `json:"steps,omitempty"`      // medians of a scale run's steps
}

// spread is a median with its extremes.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	N      int     `json:"n"`
}

func spreadOf(v []float64) spread {
	if len(v) == 0 {
		return spread{Median: math.NaN(), Min: math.NaN(), Max: math.NaN()}
	}
	return spread{Median: median(v), Min: slices.Min(v), Max: slices.Max(v), N: len(v)}
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

// series are a subject's figures by round; rounds without one are NaN.
func (r *result) series(f figure, subject string) []float64 {
	out := make([]float64, len(r.Rounds))
	for i, round := range r.Rounds {
		out[i] = math.NaN()
		v, ok := round[subject][f.key]
		if !ok {
			continue
		}
		if f.added {
			bare, ok := round["direct"][f.key]
			if !ok {
				continue
			}
			v -= bare
		}
		out[i] = v
	}
	return out
}

func present(v []float64) []float64 {
	return slices.DeleteFunc(slices.Clone(v), math.IsNaN)
}

// paired divides round by round. Where one of the two is not above zero there is
// no ratio.
func paired(a, b []float64) []float64 {
	var out []float64
	for i := range a {
		if a[i] > 0 && b[i] > 0 {
			out = append(out, a[i]/b[i])
		}
	}
	return out
}

// compare gives the ratio of two series. That of times added over no proxy is of
// their medians: in a single round noise makes one of them nothing, or less.
func compare(f figure, a, b []float64) (spread, bool) {
	ratios := paired(a, b)
	if f.added {
		ratios = paired([]float64{median(present(a))}, []float64{median(present(b))})
	}
	return spreadOf(ratios), len(ratios) > 0
}

// summarise works out one figure. The best peer is the one with the greatest
// ratio, so weir is never set beside a weaker one because of noise in one round.
func (r *result) summarise(w *work, f figure, names []string) summary {
	s := summary{Name: w.name, Unit: f.unit, Added: f.added}
	if len(w.figures) > 1 {
		s.Name += "-" + f.key
	}
	ours := r.series(f, "weir")
	for _, name := range names {
		v := present(r.series(f, name))
		if len(v) == 0 || f.added && name == "direct" {
			continue
		}
		sf := subjectFigure{Name: name, spread: spreadOf(v)}
		r.extras(&sf, name)
		if name != "weir" && name != "direct" {
			if sp, ok := compare(f, ours, r.series(f, name)); ok {
				sf.Ratio = &sp
				if sp.Median > s.Ratio && !isWeir(name) {
					s.Best, s.Ratio = name, sp.Median
				}
			}
		}
		s.Subjects = append(s.Subjects, sf)
	}
	return s
}

// extras fills in what is told beside a figure.
func (r *result) extras(sf *subjectFigure, name string) {
	of := func(key string) []float64 { return present(r.series(figure{key: key}, name)) }
	sf.Rate, sf.Total, sf.Others = median(of("rate")), median(of("total")), median(of("others"))
	sf.P50, sf.P99, sf.P999 = median(of("p50")), median(of("p99")), median(of("p999"))
	if curve := median(of("curve")); curve > 0 {
		sf.Curve = tls.CurveID(curve).String()
	}
	for _, e := range of("errors") {
		sf.Errors += e
	}
	for _, round := range r.Rounds {
		for key := range round[name] {
			if key[0] >= '0' && key[0] <= '9' {
				if sf.Steps == nil {
					sf.Steps = map[string]float64{}
				}
				sf.Steps[key] = median(of(key))
			}
		}
	}
}

func (s *summary) of(name string) *subjectFigure {
	for i := range s.Subjects {
		if s.Subjects[i].Name == name {
			return &s.Subjects[i]
		}
	}
	return nil
}
