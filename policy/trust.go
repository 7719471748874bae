package policy

import "slices"

// Roots says which root certificates the mesh trusts and which signs. It is kept in
// the store, for all control planes alike; the certificates of the roots that the
// mesh made itself, and their keys, are kept apart from it.
type Roots struct {
	Made     int       `json:"made,omitempty"`     // how many the mesh made by order, counted from 1; 0 leaves it to their age
	Retired  []int     `json:"retired,omitempty"`  // of those, the ones that are trusted no more
	Foreign  []string  `json:"foreign,omitempty"`  // PEM of roots whose keys others hold
	Signs    string    `json:"signs,omitempty"`    // fingerprint of the root that signs; "" leaves it to their age
	Rotation *Rotation `json:"rotation,omitempty"` // the last one; nil before the first

	Revision int64 `json:"-"` // the store's; 0 where nothing is kept yet
}

// The stages of a rotation, in order.
const (
	StageTrust   = "trust"   // old and new are trusted; the old signs
	StageReissue = "reissue" // both are trusted; the new signs, and everybody renews
	StageDone    = "done"    // the old is trusted no more
	StageAborted = "aborted" // the new is trusted no more
)

// Rotation is the way from some roots to another.
type Rotation struct {
	Number  int      `json:"number"` // counts rotations
	Stage   string   `json:"stage"`
	Old     []string `json:"old"`                // fingerprints of the roots that are to go
	New     string   `json:"new"`                // fingerprint of the root that comes
	Made    int      `json:"made,omitempty"`     // its number where the mesh made it; 0 is one of Foreign
	Started float64  `json:"started"`            // Unix seconds
	Since   float64  `json:"since"`              // Unix seconds: when the stage began
	Left    []string `json:"left,omitempty"`     // proxies that were left behind by force
	Wanted  []int    `json:"retiring,omitempty"` // numbers of the made ones among Old
}

// Running tells whether the rotation is between two roots.
func (r *Rotation) Running() bool {
	return r != nil && (r.Stage == StageTrust || r.Stage == StageReissue)
}

// Clone copies what may be changed apart.
func (r Roots) Clone() Roots {
	r.Retired, r.Foreign = slices.Clone(r.Retired), slices.Clone(r.Foreign)
	if r.Rotation != nil {
		c := *r.Rotation
		c.Old, c.Left, c.Wanted = slices.Clone(c.Old), slices.Clone(c.Left), slices.Clone(c.Wanted)
		r.Rotation = &c
	}
	return r
}
