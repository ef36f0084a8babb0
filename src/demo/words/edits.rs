//! Scenes that differ from a given one in a known number of attributes.

use crate::demo::scene::{Background, Cell, Colour, Dice, Letter, Object, Scene, Shape, Size};

/// What an edit may change; each at most once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slot {
    Shape(Cell),
    Colour(Cell),
    Size(Cell),
    Place(Cell),
    LetterCharacter,
    LetterPlace,
    LetterPresence,
    Background,
    Drop(Cell),
    Add,
}

/// A scene with that many attributes changed, and how many really were: fewer only if nothing more can change.
///
/// An attribute is a shape, colour, size or place of an object, the letter's character, place or presence, or the
/// background; dropping or adding an object counts as one. No attribute is changed twice, so the scenes differ in
/// exactly the number returned. The result keeps the bounds of a [`Scene`], but may be of another split.
pub fn edit(scene: &Scene, edits: usize, dice: &mut Dice) -> (Scene, usize) {
    let mut slots = vec![
        Slot::LetterCharacter,
        Slot::LetterPlace,
        Slot::LetterPresence,
        Slot::Background,
        Slot::Add,
    ];
    for object in &scene.objects {
        let cell = object.cell;
        slots.extend([Slot::Shape(cell), Slot::Colour(cell), Slot::Size(cell), Slot::Place(cell)]);
    }
    slots.push(Slot::Drop(dice.pick(&scene.objects).cell));
    dice.shuffle(&mut slots);
    let mut editor = Editor { old: scene, new: scene.clone(), touched: Vec::new() };
    let mut done = 0;
    for slot in slots {
        if done < edits && editor.apply(slot, dice) {
            editor.touched.push(slot);
            done += 1;
        }
    }
    (editor.finish(), done)
}

struct Editor<'a> {
    old: &'a Scene,
    /// Holds the old scene's objects in their order, also the dropped one, then the added one.
    new: Scene,
    touched: Vec<Slot>,
}

impl Editor<'_> {
    /// Whether one of these was changed already.
    fn was(&self, slots: &[Slot]) -> bool {
        self.touched.iter().any(|slot| slots.contains(slot))
    }

    /// Where the dropped object stood.
    fn dropped(&self) -> Option<Cell> {
        self.touched.iter().find_map(|slot| match slot {
            Slot::Drop(cell) => Some(*cell),
            _ => None,
        })
    }

    /// The object that stood in this cell of the old scene, unless it was dropped.
    fn object(&mut self, cell: Cell) -> Option<&mut Object> {
        if self.dropped() == Some(cell) {
            return None;
        }
        let index = self.old.objects.iter().position(|object| object.cell == cell)?;
        self.new.objects.get_mut(index)
    }

    /// The new scene, without the dropped object and in reading order.
    fn finish(mut self) -> Scene {
        let dropped = self.dropped();
        self.new.objects.retain(|object| Some(object.cell) != dropped);
        self.new.objects.sort_by_key(|object| object.cell);
        self.new
    }

    /// Cells that are free in both scenes, so that nothing moves to where something else has left.
    fn free_cells(&self) -> Vec<Cell> {
        let old = self.old.free_cells();
        self.new.free_cells().into_iter().filter(|cell| old.contains(cell)).collect()
    }

    /// Shapes that neither scene has.
    fn free_shapes(&self) -> Vec<Shape> {
        let old = self.old.absent();
        self.new.absent().into_iter().filter(|shape| old.contains(shape)).collect()
    }

    /// Makes one change; false if it cannot be made.
    fn apply(&mut self, slot: Slot, dice: &mut Dice) -> bool {
        match slot {
            Slot::Shape(_) | Slot::Colour(_) | Slot::Size(_) | Slot::Place(_) => {
                self.change_object(slot, dice).is_some()
            }
            Slot::LetterCharacter | Slot::LetterPlace | Slot::LetterPresence => {
                self.change_letter(slot, dice).is_some()
            }
            Slot::Background => {
                self.new.background = dice.other(self.old.background, Background::ALL);
                true
            }
            Slot::Drop(cell) => self.can_drop(cell),
            Slot::Add => self.add(dice).is_some(),
        }
    }

    fn change_object(&mut self, slot: Slot, dice: &mut Dice) -> Option<()> {
        let (cells, shapes) = (self.free_cells(), self.free_shapes());
        match slot {
            Slot::Shape(cell) => self.object(cell)?.shape = *dice.pick(&shapes),
            Slot::Place(_) if cells.is_empty() => return None,
            Slot::Place(cell) => self.object(cell)?.cell = *dice.pick(&cells),
            Slot::Colour(cell) => {
                let object = self.object(cell)?;
                object.colour = dice.other(object.colour, Colour::ALL);
            }
            Slot::Size(cell) => {
                let object = self.object(cell)?;
                object.size = dice.other(object.size, Size::ALL);
            }
            _ => return None,
        }
        Some(())
    }

    fn change_letter(&mut self, slot: Slot, dice: &mut Dice) -> Option<()> {
        let cells = self.free_cells();
        let Some(mut letter) = self.new.letter else {
            // Only a letter that the old scene did not have may appear.
            if slot != Slot::LetterPresence || cells.is_empty() {
                return None;
            }
            let character = *dice.pick(&Letter::CHARACTERS);
            self.new.letter = Some(Letter { character, cell: *dice.pick(&cells) });
            return Some(());
        };
        match slot {
            _ if self.old.letter.is_none() => return None,
            Slot::LetterCharacter => {
                letter.character = dice.other(letter.character, &Letter::CHARACTERS)
            }
            Slot::LetterPlace if cells.is_empty() => return None,
            Slot::LetterPlace => letter.cell = *dice.pick(&cells),
            _ if self.was(&[Slot::LetterCharacter, Slot::LetterPlace]) => return None,
            _ => {
                self.new.letter = None;
                return Some(());
            }
        }
        self.new.letter = Some(letter);
        Some(())
    }

    /// Whether the object may go: it was not changed, and enough are left.
    fn can_drop(&self, cell: Cell) -> bool {
        let edits = [Slot::Shape(cell), Slot::Colour(cell), Slot::Size(cell), Slot::Place(cell)];
        self.old.objects.len() > 2 && !self.was(&edits) && !self.was(&[Slot::Add])
    }

    fn add(&mut self, dice: &mut Dice) -> Option<()> {
        let (cells, shapes) = (self.free_cells(), self.free_shapes());
        if self.old.objects.len() > 4 || self.dropped().is_some() || cells.is_empty() {
            return None;
        }
        self.new.objects.push(Object {
            shape: *dice.pick(&shapes),
            colour: *dice.pick(Colour::ALL),
            size: *dice.pick(Size::ALL),
            cell: *dice.pick(&cells),
        });
        Some(())
    }
}
