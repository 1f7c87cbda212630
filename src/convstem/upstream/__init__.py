"""Private names of the libraries that we build on, all in one place. Not public: import nothing from here."""
